package inspect

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var killModeCheck = check{id: protocol.CheckKillMode, run: checkKillMode}

// checkKillMode finds a containerd that cannot be restarted while the node is in service.
func checkKillMode(ctx context.Context, i *inspection) error {
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
