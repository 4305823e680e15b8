package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

func nodeReady(h *node.Host) engine.Step {
	return step[nothing]{
		id: "node-ready", title: "Wait until the node is Ready on containerd",
		record: func(context.Context, engine.Report) (nothing, error) {
			found, err := facts.Of(h)
			if err == nil && found.Kubeconfig == "" {
				err = engine.Skip("the kubelet's credentials cannot be used for it")
			}
			return nothing{}, err
		},
		apply: func(ctx context.Context, _ nothing, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			var start startMemo
			if raw, ok := engine.Memo(h.Records(), kubeletStartID); ok {
				if err := with(kubeletStartID, raw, func(m startMemo) error { start = m; return nil }); err != nil {
					return err
				}
			}
			wait := readyWait{runtime: "containerd://", startAgain: func(ctx context.Context) error {
				return startAgain(ctx, h, found, report)
			}}
			return pods.WhileAnswering(ctx, h, found, func(ctx context.Context) error {
				if err := waitReady(ctx, h, found, wait, report); err != nil {
					return &host.UnitError{Unit: kubelet.Unit, Err: err, Log: h.Systemd.Log(ctx, kubelet.Unit)}
				}
				return waitContainer(ctx, h, found, start.Started, report)
			})
		},
	}
}

// containerWait is how long the kubelet gets to start a container. It is longer than silence, after which a containerd that hangs is noticed.
const containerWait = time.Minute

// waitContainer waits until the kubelet has started a container: a node is Ready in the API before its runtime has done anything for it. At
// least this run's own pod is to come back; where the Job was deleted and the node has no other pod either, that is a warning.
//
// A container counts that was made since kubelet-start, or since the start of the kubelet that runs now: after the clock was set back, the
// first of these lies ahead. None of an earlier boot runs.
func waitContainer(ctx context.Context, h *node.Host, found facts.Found, since time.Time, report engine.Report) error {
	if started, err := kubeletStarted(ctx, h); err == nil && started.Before(since) {
		since = started
	}
	report.Progress("wait until the kubelet has started a container", 0, 0, "")
	err := host.Within(ctx, containerWait, func(ctx context.Context) error {
		return host.Poll(ctx, 250*time.Millisecond, func(ctx context.Context) error {
			return cri.With(ctx, found.Facts.NewEndpoint, func(c *cri.Client) error {
				if started, err := c.Started(ctx, since); err != nil || started {
					return err
				}
				return errors.New("the kubelet has started no container yet")
			})
		})
	})
	switch {
	case err == nil:
		report.Progress("Ready, and the kubelet has started a container", 0, 0, "")
	case ctx.Err() == nil:
		report.Warn(fmt.Sprintf("the node is Ready, but %v", err))
		err = nil
	}
	return err
}
