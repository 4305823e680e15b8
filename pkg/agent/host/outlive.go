package host

import (
	"context"
	"time"
)

// Outlive returns a context for what has to be done after ctx has ended, such as a clean-up. It has the values of ctx and lasts for d at most:
// a daemon that hangs must not hold up the phase whose deadline has passed. No other code of the agent detaches a context.
func Outlive(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), d)
}
