package steps

import (
	"context"
	"fmt"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/inspect"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

const kubeletStopID = "kubelet-stop"

func kubeletStop(h *node.Host) engine.Step {
	return step[host.UnitState]{
		id: kubeletStopID, title: "Stop the kubelet",
		record: func(ctx context.Context, _ engine.Report) (host.UnitState, error) {
			if err := node.Holdable(ctx, h, kubelet.Unit); err != nil {
				return host.UnitState{}, err
			}
			if err := refuseForeignNow(ctx, h); err != nil {
				return host.UnitState{}, err
			}
			return h.Systemd.State(ctx, kubelet.Unit)
		},
		apply: func(ctx context.Context, _ host.UnitState, _ engine.Report) error { return holdKubelet(ctx, h) },
		revert: func(ctx context.Context, _ host.UnitState, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			// Before its files were touched the kubelet can only be the one on Docker, and to stop it would need space for nothing.
			if _, touched := engine.LastMemo(h.Records(), kubeletConfigID); touched {
				if err := pods.NewStopper(h, found).EndStray(ctx, func(ctx context.Context) error { return holdKubelet(ctx, h) }, report); err != nil {
					return err
				}
			}
			// Undoing goes on where containerd's pods could not be stopped: then nobody may start the same ones on Docker.
			if _, started := engine.Memo(h.Records(), kubeletStartID); started {
				if err := pods.NewStopper(h, found).End(ctx, true); err != nil {
					return fmt.Errorf("the kubelet stays down: %w", err)
				}
			}
			if err := releaseKubelet(ctx, h, found, steady, report); err != nil {
				return err
			}
			// The node is back whether or not the API server can be asked.
			err = host.Within(ctx, time.Minute, func(ctx context.Context) error {
				return waitReady(ctx, h, found, readyWait{runtime: "docker://"}, report)
			})
			if err != nil {
				report.Warn("the kubelet is healthy again, but the API server does not show the node as Ready on Docker yet: " + err.Error())
			}
			return nil
		},
	}
}

// refuseForeignNow looks again, when nothing of the cutover is done yet, for containers that went down with Docker: prepare looked
// before the drain, which may have taken hours.
func refuseForeignNow(ctx context.Context, h *node.Host) error {
	if h.Spec.KeepDocker {
		return nil
	}
	found, err := facts.Of(h)
	if err != nil {
		return err
	}
	return docker.With(found.DockerSocket, func(d *docker.Client) error {
		containers, err := pods.DockerContainers(ctx, d)
		if err != nil {
			return err
		}
		return inspect.RefuseForeign(containers)
	})
}
