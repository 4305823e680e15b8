package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
)

// AwaitClaims waits until no other run holds a claim on the nodes, for as long as Options.Drain.Timeout allows; zero is for ever. Who is
// waited for goes to the observer. It takes no claim: what it waited for has changed the nodes, so that the caller reads and judges
// them after it. An error is an *Error, except for a request that failed.
func (r *Switcher) AwaitClaims(ctx context.Context, nodes []string) error {
	if limit := r.options.Drain.Timeout; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, &claimTimeoutError{limit})
		defer cancel()
	}
	for _, node := range nodes {
		if err := r.awaitClaim(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// awaitClaim is a stage of its own where there is something to wait for.
func (r *Switcher) awaitClaim(ctx context.Context, node string) error {
	var other, told *claim.HeldError
	began := r.clock.Now()
	err := r.retryUntil(ctx, func() (bool, error) {
		found, _, expired, err := r.claims.By(ctx, node)
		if err != nil || found == nil || expired {
			return err == nil, err
		}
		if other = found; told == nil {
			r.tellClaim(node, StageBegun, "")
		}
		if told == nil || told.Holder != other.Holder {
			told = other
			r.tellClaim(node, Info, "waiting: "+other.Error())
		}
		return false, nil
	})
	var late *claimTimeoutError
	switch {
	case err == nil:
	case errors.As(err, &late) && other != nil:
		err = &Error{Node: node, Stage: StageClaim, Outcome: OutcomeTimeout, State: "nothing was changed", Cause: fmt.Errorf("%w: %w", late, other)}
	case ctx.Err() != nil:
		err = &Error{Node: node, Stage: StageClaim, Outcome: OutcomeInterrupted, State: "nothing was changed", Cause: err}
	}
	if told != nil {
		now := r.clock.Now()
		update := Update{Time: now, Node: node, Stage: StageClaim, Kind: StageEnded, Elapsed: now.Sub(began), Failed: err != nil}
		if err != nil {
			update.Text = err.Error()
		}
		r.observer.Observe(update)
	}
	return err
}

func (r *Switcher) tellClaim(node string, kind Kind, text string) {
	r.observer.Observe(Update{Time: r.clock.Now(), Node: node, Stage: StageClaim, Kind: kind, Text: text})
}

// retryUntil calls look again and again until it is done, its error is for good, or ctx ends.
func (r *Switcher) retryUntil(ctx context.Context, look func() (bool, error)) error {
	for {
		var done bool
		err := r.retry(ctx, func() (err error) {
			done, err = look()
			return err
		})
		if err != nil || done {
			return err
		}
		if err := r.sleep(ctx); err != nil {
			return err
		}
	}
}

// claimTimeoutError ends a wait for another run's claim.
type claimTimeoutError struct{ limit time.Duration }

func (e *claimTimeoutError) Error() string { return fmt.Sprintf("still claimed after %s", e.limit) }
