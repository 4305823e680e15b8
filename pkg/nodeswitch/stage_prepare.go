package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// prepareTimeout is how long the plugin waits for the preparation: the half hour that the host takes at most (pkg/agent/steps,
// PrepareTimeout), and what a slow pull of the agent's image takes before it. A node that dies meanwhile says nothing any more.
const prepareTimeout = 45 * time.Minute

// prepare has the agent prepare and rehearse while the node serves.
func (s *forward) prepare(ctx context.Context) error {
	pods, err := s.podsOn(ctx)
	if err != nil {
		return s.ending.retreat(ctx, StagePrepare, err, nodestate.StateFailed, OutcomeFailed)
	}
	s.images = s.host.imagesToBring(ctx, pods)
	spec := s.host.spec(protocol.PhasePrepare)
	if err := s.host.ensureJob(ctx, spec); err != nil {
		return s.ending.retreat(ctx, StagePrepare, err, nodestate.StateFailed, OutcomeRefused)
	}
	waitCtx, cancel := context.WithTimeoutCause(ctx, s.prepareTimeout, fmt.Errorf("%w: waited %s", errNoAnswer, s.prepareTimeout))
	defer cancel()
	result, err := s.follower.Follow(waitCtx, spec, nodejob.InService, false)
	if err != nil {
		return s.notPrepared(ctx, err)
	}
	switch result.Outcome {
	case protocol.OutcomeSucceeded:
	case protocol.OutcomeBroken:
		return s.ending.broken(ctx, StagePrepare, result)
	default:
		failed := s.ending.retreat(ctx, StagePrepare, resultError(result), nodestate.StateFailed, OutcomeRefused)
		failed.Detail, failed.Hint = result.Detail, resultHint(result)
		return failed
	}
	_, err = s.node.Annotate(ctx, nodestate.Set{nodestate.AnnotationPhase: string(nodestate.StatePrepared), nodestate.AnnotationFromEndpoint: s.oldEndpoint})
	if err != nil {
		return s.ending.retreat(ctx, StagePrepare, err, nodestate.StatePrepared, OutcomeFailed)
	}
	if err := s.host.removeJob(ctx, protocol.PhasePrepare); err != nil {
		s.tell(Warning, "%s", err)
	}
	return nil
}

// notPrepared judges why no result of the preparation came.
func (s *forward) notPrepared(ctx context.Context, err error) error {
	var noResult *nodejob.NoResultError
	var start *nodejob.StartError
	cause := err
	var log []string
	begun := false
	if errors.As(err, &noResult) {
		cause, log, begun = noResult.Cause, noResult.Log, noResult.Begun
	}
	var failed *Error
	switch {
	case ctx.Err() != nil:
		// The host goes on preparing; the same run finds its result.
		failed = s.ending.retreat(ctx, StagePrepare, cause, nodestate.StatePreparing, OutcomeInterrupted)
		failed.Resumable = true
	case errors.As(err, &start) && !begun:
		failed = s.ending.retreat(ctx, StagePrepare, cause, nodestate.StateFailed, OutcomeRefused)
	default:
		// Also a pod that ended again and again: the host may have been asked before, and then prepares all the same.
		failed = s.ending.retreat(ctx, StagePrepare, cause, nodestate.StatePreparing, OutcomeFailed)
		failed.Resumable = true
	}
	failed.Detail = strings.Join(log, "\n")
	return failed
}
