package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// ending is how a run ends that does not come through. Each way leaves the node in one state, which the error names.
type ending struct{ *session }

// leave ends the session with the node as it is: cordoned, on the new runtime, to be resumed.
func (s *ending) leave(ctx context.Context, stage Stage, outcome Outcome, cause error) error {
	return &Error{Node: s.name, Stage: stage, Outcome: outcome, State: s.whereabouts(ctx), Resumable: true, Cause: cause}
}

// rolledBack gives the node back once it serves on the old runtime again.
func (s *ending) rolledBack(ctx context.Context, stage Stage, cause error, result *protocol.Result) error {
	failed := &Error{Node: s.name, Stage: stage, Outcome: OutcomeRolledBack, Detail: result.Detail, Hint: resultHint(result), Cause: cause}
	stuck := func(err error) error {
		failed.Outcome, failed.Resumable = OutcomeStuck, true
		if ctx.Err() != nil {
			failed.Outcome = OutcomeInterrupted
		}
		failed.Cause, failed.State = errors.Join(cause, err), s.whereabouts(ctx)
		return failed
	}
	if err := s.checks.awaitRuntime(ctx, s.old, time.Time{}); err != nil {
		return stuck(fmt.Errorf("wait for the old runtime: %w", err))
	}
	undo, cancel := s.undoContext(ctx)
	defer cancel()
	if err := s.host.remove(undo); err != nil {
		s.tell(Warning, "%s", err)
	}
	cordoned, err := s.node.Uncordon(undo, nodestate.At(nodestate.StateRolledBack, message(stage, cause)), nodestate.RestoreCRISocket)
	if err != nil {
		return stuck(err)
	}
	s.recordOutOfService(cordoned)
	s.pods.endLeaving(undo)
	failed.State = fmt.Sprintf("the node is back on %s and serves", s.report.To)
	if cordoned {
		failed.State = fmt.Sprintf("the node is back on %s and cordoned, as before", s.report.To)
	}
	return failed
}

// giveUp gives up before the host has begun: the node is left as this rollback found it, also cordoned if an earlier run had
// cordoned it for good reason.
func (s *backward) giveUp(ctx context.Context, stage Stage, cause error, outcome Outcome) *Error {
	was := nodestate.Set{nodestate.AnnotationPhase: string(s.state), nodestate.AnnotationMessage: s.message}
	if s.inService {
		failed := s.ending.stepBack(ctx, stage, cause, outcome, was)
		if s.unready {
			failed.State = s.whereabouts(ctx)
		}
		return failed
	}
	undo, cancel := s.undoContext(ctx)
	defer cancel()
	failed := &Error{Node: s.name, Stage: stage, Outcome: OutcomeStuck, Hint: Hint(cause), Resumable: true, Cause: cause}
	if ctx.Err() != nil {
		failed.Outcome = outcome
	}
	if errors.Is(s.proveClaim(undo), claim.ErrLost) {
		return failed // inStage says so
	}
	if err := s.host.remove(undo, protocol.PhaseRollback); err != nil {
		s.tell(Warning, "%s", err)
	}
	if _, err := s.node.Annotate(undo, was); err != nil {
		s.tell(Warning, "%s", err)
	}
	failed.State = s.whereabouts(ctx)
	return failed
}

// notStarted gives up on a Job whose pod cannot start: the agent on the host needs none.
func (s *backward) notStarted(ctx context.Context, stage Stage, cause error) *Error {
	failed := s.giveUp(ctx, stage, cause, OutcomeFailed)
	failed.Resumable = true
	if s.unready {
		failed.Hint = strings.TrimPrefix(failed.Hint+"; where the kubelet starts no pods, go back without it, "+preflight.ByHand, "; ")
	}
	return failed
}

// maxMessage bounds the message annotation in bytes; the whole output is in the error.
const maxMessage = 512

// failedOrInterrupted is the outcome of what failed, or of what its user ended.
func failedOrInterrupted(ctx context.Context) Outcome {
	if ctx.Err() != nil {
		return OutcomeInterrupted
	}
	return OutcomeFailed
}

// retreat gives up before the cutover: what the plugin did to the node in the cluster is undone, and state and message are noted.
func (s *ending) retreat(ctx context.Context, stage Stage, cause error, state nodestate.State, outcome Outcome) *Error {
	return s.stepBack(ctx, stage, cause, outcome, nodestate.At(state, message(stage, cause)))
}

// stepBack removes the Jobs and undoes our cordon, with more annotations in the same request.
func (s *ending) stepBack(ctx context.Context, stage Stage, cause error, outcome Outcome, more nodestate.Set) *Error {
	failed := &Error{Node: s.name, Stage: stage, Outcome: outcome, Hint: Hint(cause), Cause: cause}
	undo, cancel := s.undoContext(ctx)
	defer cancel()
	if errors.Is(s.proveClaim(undo), claim.ErrLost) {
		return failed // inStage says so
	}
	if err := s.host.remove(undo); err != nil {
		s.tell(Warning, "%s", err)
	}
	cordoned, err := s.node.Uncordon(undo, more)
	if err != nil {
		failed.Outcome, failed.Cause = OutcomeStuck, errors.Join(cause, err)
		failed.State = s.whereabouts(ctx)
		return failed
	}
	failed.State = fmt.Sprintf("the node serves on %s as before", s.from)
	if cordoned {
		failed.State = fmt.Sprintf("the node is on %s and cordoned, as before", s.from)
	}
	return failed
}

// broken leaves the node as it is, for a person.
func (s *ending) broken(ctx context.Context, stage Stage, result *protocol.Result) error {
	cause := resultError(result)
	undo, cancel := s.undoContext(ctx)
	defer cancel()
	_, err := s.node.Annotate(undo, nodestate.At(nodestate.StateBroken, message(stage, cause)))
	return &Error{
		Node: s.name, Stage: stage, Outcome: OutcomeStuck, State: s.whereabouts(ctx),
		Detail: result.Detail, Hint: resultHint(result), Cause: errors.Join(cause, err),
	}
}

// nodeSays begins what is in the node's own words, so that nobody takes it for this program's.
const nodeSays = "the node says: "

// resultError is a phase's result as an error.
func resultError(result *protocol.Result) error {
	text := result.Message
	if text == "" {
		text = string(result.Outcome)
	}
	if result.FailedStep != "" {
		text = result.FailedStep + ": " + text
	}
	return errors.New(nodeSays + text)
}

// resultHint is what the node's agent takes for the cure, or "".
func resultHint(result *protocol.Result) string {
	if result.Hint == "" {
		return ""
	}
	return nodeSays + result.Hint
}

// message is the annotation's text for a failure, which status shows.
func message(stage Stage, cause error) string {
	flags := ""
	if isImageMissing(cause) {
		flags = "; --image and --image-pull-secret say which image to pull, and how"
	}
	text := strings.ReplaceAll(fmt.Sprintf("%s: %v", stage, cause), "\n", "; ")
	if most := maxMessage - len(flags); len(text) > most {
		text = strings.ToValidUTF8(text[:most-len("…")], "") + "…"
	}
	return text + flags
}
