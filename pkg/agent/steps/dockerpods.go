package steps

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

// dockerPods stops Docker's pods.
func dockerPods(h *node.Host) engine.Step {
	return step[nothing]{
		id: "docker-pods", title: "Stop Docker's pods", record: recordNothing,
		apply: func(ctx context.Context, _ nothing, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			if err := wakeDocker(ctx, h, found); err != nil {
				return err
			}
			return pods.StopDockers(ctx, found, report)
		},
		// The kubelet starts its pods again.
	}
}

// wakeDocker starts Docker where a reboot came in between; normally it runs.
func wakeDocker(ctx context.Context, h *node.Host, found facts.Found) error {
	units := []string{"docker.service"}
	if !found.Dockershim() {
		units = append(units, node.CriDockerUnits[1], node.CriDockerUnits[3])
	}
	for _, unit := range units {
		state, err := h.Systemd.State(ctx, unit)
		if err != nil {
			return err
		}
		if state.Exists() && state.Active != "active" {
			if err := h.Systemd.Start(ctx, unit); err != nil {
				return err
			}
		}
	}
	return nil
}
