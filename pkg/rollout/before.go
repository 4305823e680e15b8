package rollout

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// maxMessage bounds the message annotation in bytes; the whole output is in the error.
const maxMessage = 512

// prepareTimeout is how long the plugin waits for the preparation: the half hour that the host takes at most (pkg/agent/steps,
// PrepareTimeout), and what a slow pull of the agent's image takes before it. A node that dies meanwhile says nothing any more.
const prepareTimeout = 45 * time.Minute

// prepare has the agent prepare and rehearse while the node serves.
func (s *session) prepare(ctx context.Context) error {
	pods, err := s.podsOn(ctx)
	if err != nil {
		return s.retreat(ctx, StagePrepare, err, nodestate.StateFailed, OutcomeFailed)
	}
	s.images = s.imagesToBring(ctx, pods)
	spec := s.spec(protocol.PhasePrepare)
	if err := s.ensureJob(ctx, spec); err != nil {
		return s.retreat(ctx, StagePrepare, err, nodestate.StateFailed, OutcomeRefused)
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
		return s.broken(ctx, StagePrepare, result)
	default:
		failed := s.retreat(ctx, StagePrepare, resultError(result), nodestate.StateFailed, OutcomeRefused)
		failed.Detail, failed.Hint = result.Detail, resultHint(result)
		return failed
	}
	_, err = s.node.Annotate(ctx, nodestate.Set{nodestate.AnnotationPhase: string(nodestate.StatePrepared), nodestate.AnnotationFromEndpoint: s.oldEnd})
	if err != nil {
		return s.retreat(ctx, StagePrepare, err, nodestate.StatePrepared, OutcomeFailed)
	}
	if err := s.removeJob(ctx, protocol.PhasePrepare); err != nil {
		s.tell(Warning, "%s", err)
	}
	return nil
}

// notPrepared judges why no result of the preparation came.
func (s *session) notPrepared(ctx context.Context, err error) error {
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
		failed = s.retreat(ctx, StagePrepare, cause, nodestate.StatePreparing, OutcomeInterrupted)
		failed.Resumable = true
	case errors.As(err, &start) && !begun:
		failed = s.retreat(ctx, StagePrepare, cause, nodestate.StateFailed, OutcomeRefused)
		failed.Hint = admissionHint(err)
	default:
		// Also a pod that ended again and again: the host may have been asked before, and then prepares all the same.
		failed = s.retreat(ctx, StagePrepare, cause, nodestate.StatePreparing, OutcomeFailed)
		failed.Resumable = true
	}
	failed.Detail = strings.Join(log, "\n")
	return failed
}

// drain cordons the node and empties it.
func (s *session) drain(ctx context.Context) error {
	giveUp := func(cause error, outcome Outcome) *Error {
		var failed *Error
		if s.back != nil {
			failed = s.forsake(ctx, StageDrain, cause, outcome)
		} else {
			failed = s.retreat(ctx, StageDrain, cause, nodestate.StatePrepared, outcome)
		}
		failed.Resumable = true
		return failed
	}
	if s.back == nil {
		if err := s.proveBefore(ctx); err != nil {
			outcome := s.failedOrInterrupted(ctx)
			if admissionHint(err) != "" {
				outcome = OutcomeRefused
			}
			failed := giveUp(err, outcome)
			failed.Hint = admissionHint(err)
			return failed
		}
		s.park(ctx)
	}
	if err := s.rememberBefore(ctx); err != nil {
		return giveUp(err, s.failedOrInterrupted(ctx))
	}
	var more nodestate.Set
	if s.back == nil {
		more = nodestate.Set{nodestate.AnnotationPhase: string(nodestate.StateDraining), nodestate.AnnotationFailedBefore: strings.Join(s.unproven, ",")}
	}
	err := s.empty(ctx, more)
	if err == nil {
		return nil
	}
	return giveUp(err, s.drainOutcome(ctx, err))
}

// drainOutcome is how a drain that failed leaves the node.
func (s *session) drainOutcome(ctx context.Context, err error) Outcome {
	var timeout *drain.TimeoutError
	if errors.As(err, &timeout) {
		return OutcomeTimeout
	}
	return s.failedOrInterrupted(ctx)
}

func (s *session) failedOrInterrupted(ctx context.Context) Outcome {
	if ctx.Err() != nil {
		return OutcomeInterrupted
	}
	return OutcomeFailed
}

// rememberBefore notes what the node looks like while it still serves on the old runtime.
func (s *session) rememberBefore(ctx context.Context) error {
	pods, err := s.podsOn(ctx)
	if err != nil {
		return err
	}
	s.before = map[string]bool{}
	for i := range pods {
		if owner := residentOf(&pods[i]); owner != "" && podReady(&pods[i]) {
			s.before[owner] = true
		}
	}
	node, err := s.nodeSeen(ctx)
	if err != nil {
		return err
	}
	s.beat = heartbeat(node)
	if inventory.FromNode(node).Runtime == s.target {
		s.beat = time.Time{} // a kubelet whose status does not change says so every five minutes only
	}
	return nil
}

// residentOf names what a pod that a drain leaves on its node belongs to: "namespace/name" of a DaemonSet or of a static pod, or "".
func residentOf(pod *corev1.Pod) string {
	if _, static := pod.Annotations[corev1.MirrorPodAnnotationKey]; static {
		return pod.Namespace + "/" + pod.Name
	}
	owner := metav1.GetControllerOf(pod)
	if owner == nil || owner.Kind != "DaemonSet" {
		return ""
	}
	return pod.Namespace + "/" + owner.Name
}

func podReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil
		}
	}
	return false
}

// drainReport passes a drain's progress on.
type drainReport struct{ session *session }

func (d *drainReport) Evicting(pod *corev1.Pod) {
	d.session.tell(Info, "evicting pod %s/%s", pod.Namespace, pod.Name)
}

func (d *drainReport) Gone(pod *corev1.Pod) {
	d.session.tell(Info, "pod %s/%s is gone", pod.Namespace, pod.Name)
}

func (d *drainReport) Blocked(block drain.Block) {
	d.session.tell(Info, "%s, since %s", block, block.Since.Local().Format("15:04:05"))
}

// retreat gives up before the cutover: what the plugin did to the node in the cluster is undone, and state and message are noted.
func (s *session) retreat(ctx context.Context, stage Stage, cause error, state nodestate.State, outcome Outcome) *Error {
	return s.stepBack(ctx, stage, cause, outcome, nodestate.At(state, message(stage, cause)))
}

// stepBack removes the Jobs and undoes our cordon, with more nodestate.Set in the same request.
func (s *session) stepBack(ctx context.Context, stage Stage, cause error, outcome Outcome, more nodestate.Set) *Error {
	failed := &Error{Node: s.name, Stage: stage, Outcome: outcome, Cause: cause}
	undo, cancel := s.undoContext(ctx)
	defer cancel()
	if errors.Is(s.proveClaim(undo), claim.ErrLost) {
		return failed // inStage says so
	}
	if err := s.remove(undo); err != nil {
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
func (s *session) broken(ctx context.Context, stage Stage, result *protocol.Result) error {
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

// message is the annotation's text for a failure.
func message(stage Stage, cause error) string {
	text := strings.ReplaceAll(fmt.Sprintf("%s: %v", stage, cause), "\n", "; ")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage-len("…")], "") + "…"
	}
	return text
}
