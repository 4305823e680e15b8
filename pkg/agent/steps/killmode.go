package steps

import (
	"context"
	"errors"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

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
