package steps

import (
	"context"
	"fmt"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// verify looks at the switched host again; it changes nothing.
func verify(h *node.Host) engine.Step {
	return step[nothing]{
		id: "verify", title: "Check runtime and kubelet", record: recordNothing,
		apply: func(ctx context.Context, _ nothing, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			check, err := waitForCRI(ctx, h, found, cri.Report.Ready)
			if err != nil {
				return err
			}
			if err := kubelet.Healthy(ctx, found.HealthzURL); err != nil {
				return err
			}
			units := node.CriDockerUnits
			if !h.Spec.KeepDocker {
				units = append(units[:len(units):len(units)], node.DockerUnits...)
			}
			for _, unit := range units {
				state, err := h.Systemd.State(ctx, unit)
				if err != nil {
					return err
				}
				if state.Running() {
					return fmt.Errorf("%s is %s", unit, state.Active)
				}
			}
			report.Progress("containerd "+check.RuntimeVersion, 0, 0, "")
			return nil
		},
	}
}
