package steps

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

const kubeletStartID = "kubelet-start"

type startMemo struct {
	Started time.Time `json:"started"`
}

func kubeletStart(h *node.Host) engine.Step {
	return step[startMemo]{
		id: kubeletStartID, title: "Start the kubelet on containerd",
		record: func(context.Context, engine.Report) (startMemo, error) { return startMemo{time.Now().UTC()}, nil },
		apply: func(ctx context.Context, _ startMemo, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			setup, err := found.Kubelet()
			if err != nil {
				return err
			}
			if setup.Version.Minor <= 20 {
				if err := removeDockerLogLinks("/var/log/pods"); err != nil {
					return err
				}
			}
			lasting := steady
			if found.Kubeconfig != "" {
				lasting = 0 // node-ready comes next, and shows more
			}
			end := answerForDocker(setup.Version, cadvisorSocket, report)
			defer end()
			return pods.WhileAnswering(ctx, h, found, func(ctx context.Context) error { return releaseKubelet(ctx, h, found, lasting, report) })
		},
		revert: func(ctx context.Context, _ startMemo, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			if err := holdKubelet(ctx, h); err != nil {
				return err
			}
			stopper := pods.NewStopper(h, found)
			if err := stopper.Stop(ctx, report); err != nil {
				return err
			}
			stopper.ReleaseLost(ctx, found, report)
			return nil
		},
	}
}

// removeDockerLogLinks removes dockershim's links from pods' log directories. Kubelets up to 1.20 name the first log of a container
// 0.log again, and containerd would write through the link into Docker's file. Docker keeps the logs.
func removeDockerLogLinks(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*", "*", "*.log"))
	if err != nil {
		return err
	}
	for _, log := range logs {
		info, err := os.Lstat(log)
		if err != nil || info.Mode().Type() != os.ModeSymlink {
			continue
		}
		if err := host.Remove(log); err != nil {
			return err
		}
	}
	return nil
}
