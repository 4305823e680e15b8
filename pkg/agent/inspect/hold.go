package inspect

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var holdCheck = check{id: protocol.CheckHold, run: checkHold}

// checkHold finds drop-ins with which the kubelet's or Docker's units could not be held down during the cutover, and folders into which
// no drop-in of one unit alone can be put, containerd's included.
func checkHold(ctx context.Context, i *inspection) error {
	units, err := node.UnitsToStop(ctx, i.h)
	if err != nil {
		return err
	}
	held := append([]string{kubelet.Unit}, node.NamesOf(units)...)
	for _, unit := range append([]string{node.ContainerdUnit}, held...) {
		obstacle, err := host.DropInObstacle(i.h.Systemd, unit, i.h.ReadOnly)
		if err != nil {
			return err
		}
		if obstacle != "" {
			return node.Refuse("make it a directory of its own that can be written to, with the files that it has now",
				"the switch cannot give a drop-in to %s alone: %s", unit, obstacle)
		}
	}
	return node.Holdable(ctx, i.h, held...)
}
