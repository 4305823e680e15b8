package steps

import (
	"context"
	"fmt"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/inspect"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// inspectHost looks at everything before anything is changed, and refuses what cannot be switched safely.
func inspectHost(h *node.Host) engine.Step {
	return step[facts.Found]{
		id: facts.InspectID, title: "Inspect the host",
		record: func(ctx context.Context, report engine.Report) (facts.Found, error) {
			return inspect.Run(ctx, h, report)
		},
		apply: func(_ context.Context, found facts.Found, report engine.Report) error {
			have := "containerd " + found.Facts.ContainerdVersion
			if found.Install != nil {
				have += " to be installed"
				report.Info(found.Install.String())
			}
			report.Progress(fmt.Sprintf("kubelet %s, Docker %s, %s", found.Facts.KubeletVersion, found.Facts.DockerVersion, have), 0, 0, "")
			report.Facts(found.Facts)
			return nil
		},
	}
}
