package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

const (
	// cutoverMargin is what the plugin waits beyond the host's own deadline: for the Job's pod to start, for the host to undo, and
	// for the pod to come back.
	cutoverMargin = 5 * time.Minute
	// verifyTimeout bounds each wait of the verification but the canary's.
	verifyTimeout = 3 * time.Minute
)

// errNoAnswer is the cause of a wait for the host that took too long.
var errNoAnswer = errors.New("no result came from the node in time")

// cutover has the host switch by itself, and waits for what it came to.
func (s *forward) cutover(ctx context.Context) error {
	resumed := s.state == nodestate.StateCutover
	node, err := s.node.Annotate(ctx, nodestate.Set{nodestate.AnnotationPhase: string(nodestate.StateCutover)})
	if err != nil && !resumed {
		return s.ending.retreat(ctx, StageCutover, err, nodestate.StatePrepared, failedOrInterrupted(ctx))
	}
	spec := s.host.spec(protocol.PhaseCutover)
	ahead := func() {}
	if !resumed {
		if err := s.pods.keepEmpty(ctx, node); err != nil {
			failed := s.ending.retreat(ctx, StageCutover, err, nodestate.StatePrepared, s.pods.drainOutcome(ctx, err))
			failed.Resumable = true
			return failed
		}
		ahead = s.checks.canaryAhead(ctx)
	}
	begun, asked := s.host.release(ctx, spec)
	result, err := s.host.runUnattended(ctx, StageCutover, spec, resumed || begun, asked)
	ahead()
	if err != nil {
		return err
	}
	switch result.Outcome {
	case protocol.OutcomeSucceeded:
		_, err := s.node.Annotate(ctx, nodestate.Set{nodestate.AnnotationPhase: string(nodestate.StateVerifying)})
		return err
	case protocol.OutcomeRolledBack:
		return s.ending.rolledBack(ctx, StageCutover, resultError(result), result)
	case protocol.OutcomeRefused:
		failed := s.ending.retreat(ctx, StageCutover, resultError(result), nodestate.StateFailed, OutcomeRefused)
		failed.Detail, failed.Hint = result.Detail, resultHint(result)
		return failed
	default:
		return s.ending.broken(ctx, StageCutover, result)
	}
}

// runUnattended runs a phase that goes on without the plugin: begun, if the host may have begun with it, and asked, if it was asked. Its
// errors are *Error; one before the agent began is undone.
func (s *hostWork) runUnattended(ctx context.Context, stage Stage, spec protocol.Spec, begun, asked bool) (*protocol.Result, error) {
	limit := s.options.CutoverTimeout + cutoverMargin
	waitCtx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: waited %s", errNoAnswer, limit))
	defer cancel()
	var err error
	if !asked {
		if err = s.proveClaim(waitCtx); err == nil {
			err = s.ensureJob(waitCtx, spec)
		}
		asked = err == nil
	}
	refused := err != nil && ctx.Err() == nil && !nodejob.IsTransient(err) && !errors.Is(err, errNoAnswer)
	if err == nil {
		var result *protocol.Result
		if result, err = s.follower.Follow(waitCtx, spec, nodejob.Unattended, begun); err == nil {
			return result, nil
		}
		var noResult *nodejob.NoResultError
		var start *nodejob.StartError
		if errors.As(err, &noResult) {
			refused = !noResult.Begun && errors.As(err, &start)
			err = noResult.Cause
		}
	}
	if refused && !begun {
		return nil, s.course.notStarted(ctx, stage, err)
	}
	failed := &Error{Node: s.name, Stage: stage, Outcome: OutcomeStuck, State: s.whereabouts(ctx), Resumable: true, Cause: err}
	if ctx.Err() != nil {
		failed.Outcome = OutcomeInterrupted
	}
	switch {
	case !asked && (!begun || s.disproved != nil):
		failed.State = fmt.Sprintf("the host was not asked for the %s, as far as is known; %s", stage, failed.State)
	case !asked && ctx.Err() != nil:
		failed.State = fmt.Sprintf("if the host was asked for the %s, it continues by itself; %s", stage, failed.State)
	case ctx.Err() != nil:
		failed.State = fmt.Sprintf("the host continues the %s by itself; %s", stage, failed.State)
	case stage == StageRollback:
		failed.State = "the host continues the rollback by itself, if it was reached; " + failed.State
		failed.Hint = "where the kubelet starts no pods, go back without it, " + preflight.ByHand
	default:
		failed.State = fmt.Sprintf("the host continues by itself, undoes the %s at its deadline if it has to; %s", stage, failed.State)
	}
	return nil, failed
}

// parkTimeout bounds the start of the cutover's pod ahead: the node is in service, and without it the pod is started later.
const parkTimeout = 15 * time.Second

// park has the cutover's pod started while the node serves, to wait there: what is left to do once the node is drained is to tell it. It also
// waits until the preparation's pod is gone, since a kubelet up to 1.26 makes five requests a second, which the drained pods
// are then waiting for. What goes wrong costs a second later on and no more.
func (s *hostWork) park(ctx context.Context) {
	if !s.runner.MayExec(ctx) {
		return
	}
	spec := s.spec(protocol.PhaseCutover)
	wait, cancel := context.WithTimeout(ctx, s.parkTimeout)
	defer cancel()
	params := s.params(spec)
	params.Wait = true
	err := s.ensure(wait, params)
	if err == nil {
		err = s.watch.Await(wait, func() (bool, error) {
			before, err := s.runner.PhasePod(wait, s.spec(protocol.PhasePrepare))
			if err != nil || before != nil {
				return false, err
			}
			pod, err := s.runner.PhasePod(wait, spec)
			return err == nil && pod != nil && nodejob.HasStarted(pod), err
		})
	}
	s.parked = err == nil
	if err != nil && ctx.Err() == nil {
		_ = s.remove(ctx, protocol.PhaseCutover) // what is left of it is replaced
	}
}

// release tells the pod that waits to go on. begun: the host may have been asked, whether or not that is known; asked: it is.
func (s *hostWork) release(ctx context.Context, spec protocol.Spec) (begun, asked bool) {
	if !s.parked || s.proveClaim(ctx) != nil {
		return false, false
	}
	sent, err := s.runner.Release(ctx, spec)
	if err != nil && ctx.Err() == nil {
		s.tell(Info, "cannot signal the waiting cutover pod (%v): starting another one", err)
	}
	return sent, err == nil
}
