package steps

import (
	"context"
	"errors"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// lookAtKillMode finds a containerd that cannot be restarted while the node is in service.
func (i *inspection) lookAtKillMode(ctx context.Context) error {
	k, err := node.ContainerdKillMode(ctx, i.h, node.Proc)
	if err != nil {
		return err
	}
	if err := k.Restartable(); err != nil {
		return err
	}
	if k != nil && k.Mode != "process" {
		i.warn("%s has KillMode=%s (%s): once the node's pods run on containerd, each restart of it, as by an upgrade, kills them; %s",
			node.ContainerdUnit, k.Mode, k.From, node.KillModeHint)
	}
	return nil
}

// restartContainerdBack is restartContainerd for an undo. A containerd that cannot be restarted safely runs on with what it has read.
func restartContainerdBack(ctx context.Context, h *node.Host, report engine.Report) error {
	err := restartContainerd(ctx, h, report)
	var refused *node.Refusal
	if errors.As(err, &refused) {
		report.Warn("containerd was not restarted and still has the configuration of the switch: " + err.Error() + "; " + refused.Hint() + ", then restart it")
		return nil
	}
	return err
}
