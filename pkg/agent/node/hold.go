package node

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// Holdable refuses units that could not be kept down: after a power loss they would come up in the middle of a switch.
func Holdable(ctx context.Context, h *Host, units ...string) error {
	for _, unit := range units {
		breaker, err := host.HoldBreaker(ctx, h.Systemd, unit)
		if err != nil {
			return err
		}
		if breaker != "" {
			return Refuse("give it a name that sorts before "+host.HoldName+", and run systemctl daemon-reload",
				"%s resets the conditions of %s, which then cannot be kept down during the switch", breaker, unit)
		}
	}
	return nil
}
