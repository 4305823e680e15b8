package nodeswitch

import (
	"context"
	"errors"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// soak watches the node while pods come back.
func (s *session) soak(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.options.Soak, errSoaked)
	defer cancel()
	unready := errors.New("the node is no longer Ready after it was given back")
	err := s.watch.Await(ctx, func() (bool, error) {
		node, err := s.watch.Node(ctx)
		if err == nil && !isNodeReady(node) {
			return true, unready
		}
		return false, nil
	})
	switch {
	case errors.Is(err, unready):
		return s.takeBack(ctx, err)
	case errors.Is(err, errSoaked):
		return nil
	}
	// The node is done; only its watch is cut short.
	return &Error{Node: s.name, Stage: StageSoak, Outcome: OutcomeInterrupted, State: "the node was given back and serves", Cause: err}
}

// takeBack takes a node out of service again that did not keep what the verification proved: the run is not done, and is resumed with
// another verification.
func (s *session) takeBack(ctx context.Context, cause error) error {
	undo, cancel := s.undoContext(ctx)
	defer cancel()
	_, err := s.node.Cordon(undo, nodestate.At(s.reopened, message(StageSoak, cause)))
	return s.ending.leave(ctx, StageSoak, OutcomeStuck, errors.Join(cause, err))
}

// errSoaked ends the soak well.
var errSoaked = errors.New("soaked")
