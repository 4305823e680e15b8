package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
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
func (s *session) cutover(ctx context.Context) error {
	resumed := s.state == nodestate.StateCutover
	node, err := s.node.Annotate(ctx, nodestate.Set{nodestate.AnnotationPhase: string(nodestate.StateCutover)})
	if err != nil && !resumed {
		return s.retreat(ctx, StageCutover, err, nodestate.StatePrepared, s.failedOrInterrupted(ctx))
	}
	spec := s.spec(protocol.PhaseCutover)
	ahead := func() {}
	if !resumed {
		if err := s.keepEmpty(ctx, node); err != nil {
			failed := s.retreat(ctx, StageCutover, err, nodestate.StatePrepared, s.drainOutcome(ctx, err))
			failed.Resumable = true
			return failed
		}
		ahead = s.canaryAhead(ctx)
	}
	begun, asked := s.release(ctx, spec)
	result, err := s.runUnattended(ctx, StageCutover, spec, resumed || begun, asked)
	ahead()
	if err != nil {
		return err
	}
	switch result.Outcome {
	case protocol.OutcomeSucceeded:
		_, err := s.node.Annotate(ctx, nodestate.Set{nodestate.AnnotationPhase: string(nodestate.StateVerifying)})
		return err
	case protocol.OutcomeRolledBack:
		return s.rolledBack(ctx, StageCutover, resultError(result), result)
	case protocol.OutcomeRefused:
		failed := s.retreat(ctx, StageCutover, resultError(result), nodestate.StateFailed, OutcomeRefused)
		failed.Detail, failed.Hint = result.Detail, resultHint(result)
		return failed
	default:
		return s.broken(ctx, StageCutover, result)
	}
}

// runUnattended runs a phase that goes on without the plugin: begun, if the host may have begun with it, and asked, if it was asked. Its
// errors are *Error; one before the agent began is undone.
func (s *session) runUnattended(ctx context.Context, stage Stage, spec protocol.Spec, begun, asked bool) (*protocol.Result, error) {
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
		if s.back != nil {
			return nil, s.notStarted(ctx, err)
		}
		return nil, s.retreat(ctx, stage, err, nodestate.StatePrepared, OutcomeFailed)
	}
	failed := &Error{Node: s.name, Stage: stage, Outcome: OutcomeStuck, State: s.whereabouts(ctx), Resumable: true, Cause: err}
	if ctx.Err() != nil {
		failed.Outcome = OutcomeInterrupted
	}
	switch {
	case !asked && (!begun || s.disproved != nil):
		failed.State = fmt.Sprintf("the host was not asked for the %s, as far as is known; %s", stage, failed.State)
	case !asked && ctx.Err() != nil:
		failed.State = fmt.Sprintf("if the host was asked for the %s, it goes on by itself; %s", stage, failed.State)
	case ctx.Err() != nil:
		failed.State = fmt.Sprintf("the host goes on with the %s by itself; %s", stage, failed.State)
	case stage == StageRollback:
		failed.State = "the host goes on with the rollback by itself, if it was reached; " + failed.State
		failed.Hint = "where the kubelet starts no pods, go back without it, " + byHand
	default:
		failed.State = fmt.Sprintf("the host goes on by itself, undoes the %s at its deadline if it has to; %s", stage, failed.State)
	}
	return nil, failed
}

// verify proves the new runtime from outside the host. What fails is in s.disproved, to be undone.
func (s *session) verify(ctx context.Context) error {
	s.noteLeaving(ctx)
	err := s.checkNode(ctx)
	if err == nil {
		err = s.checkAtOnce(ctx, s.checkOwnPod, s.checkResidents, s.checkCanary, s.checkHost)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return s.leave(ctx, StageVerify, OutcomeInterrupted, context.Cause(ctx))
	case isOutage(err):
		return s.leave(ctx, StageVerify, OutcomeStuck, err)
	default:
		s.disproved = err
		return &Error{Node: s.name, Stage: StageVerify, Outcome: OutcomeStuck, Cause: err}
	}
}

// errOtherFailed ends the checks beside one that failed.
var errOtherFailed = errors.New("another check failed")

// checkAtOnce waits for what comes back by itself while the canary runs: the node is out of service. It returns what failed first.
func (s *session) checkAtOnce(ctx context.Context, checks ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	failed := make(chan error, len(checks))
	for _, check := range checks {
		go func() { failed <- check(ctx) }()
	}
	var first error
	for range checks {
		if err := <-failed; err != nil && first == nil {
			first = err
			cancel(errOtherFailed)
		}
	}
	return first
}

// isOutage tells a request that failed from a check that did.
func isOutage(err error) bool {
	var outage *nodejob.OutageError
	return errors.As(err, &outage)
}

// leave ends the session with the node as it is: cordoned, on the new runtime, to be resumed.
func (s *session) leave(ctx context.Context, stage Stage, outcome Outcome, cause error) error {
	return &Error{Node: s.name, Stage: stage, Outcome: outcome, State: s.whereabouts(ctx), Resumable: true, Cause: cause}
}

// await waits for a check of the verification; the last word of look is the error.
func (s *session) await(ctx context.Context, what string, look func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, verifyTimeout, fmt.Errorf("%s: not so after %s", what, verifyTimeout))
	defer cancel()
	var requestErr error // whatever it is, also credentials that are no longer taken: it says nothing of the node
	err := s.watch.Await(ctx, func() (bool, error) {
		done, err := look(ctx)
		requestErr = nil
		if err != nil && !isFinding(err) {
			requestErr = err
		}
		return done, err
	})
	if err != nil && requestErr != nil {
		return &nodejob.OutageError{Cause: err}
	}
	return err
}

// finding is what a check found wrong, as opposed to a request that failed.
type finding string

func (f finding) Error() string { return string(f) }

func isFinding(err error) bool {
	var f finding
	return errors.As(err, &f)
}

// awaitRuntime waits until the node is Ready on a runtime, with another heartbeat than the last one on the other runtime. It is not asked to be a later one:
// the node's clock may have been set back.
func (s *session) awaitRuntime(ctx context.Context, runtime string, last time.Time) error {
	isThere := func(node *corev1.Node) bool {
		return inventory.FromNode(node).Runtime == runtime && isNodeReady(node) && !heartbeat(node).Equal(last)
	}
	return s.await(ctx, "node Ready on "+runtime, func(ctx context.Context) (bool, error) {
		node, err := s.nodeSeen(ctx)
		if err == nil && isThere(node) {
			node, err = s.getNode(ctx, s.name) // a watch may be late, and this is what the node is given back for
		}
		if err != nil {
			return false, err
		}
		row := inventory.FromNode(node)
		if isThere(node) {
			s.report.To = row.Reported
			return true, nil
		}
		return false, finding(fmt.Sprintf("the node is %s and reports %s, last heartbeat %s", row.Status(), row.Reported, heartbeat(node).UTC().Format(time.TimeOnly)))
	})
}

func (s *session) checkNode(ctx context.Context) error {
	last := s.beat
	if s.before == nil {
		last = time.Time{} // nobody looked before the cutover: the heartbeat that was seen may be the new runtime's
	}
	if err := s.awaitRuntime(ctx, s.target, last); err != nil {
		return err
	}
	s.tell(Info, "node is Ready on %s", s.report.To)
	return nil
}

// checkOwnPod looks at the Job's pod: the other runtime started it, and only this one can have started it again.
func (s *session) checkOwnPod(ctx context.Context) error {
	return s.await(ctx, fmt.Sprintf("pod of the %s back on %s", s.proof, s.target), func(ctx context.Context) (bool, error) {
		pod, err := s.runner.PhasePod(ctx, s.spec(s.proof))
		if err != nil {
			return false, err
		}
		if pod == nil {
			s.tell(Info, "the pod of the %s is gone, the canary alone is the proof", s.proof)
			return true, nil
		}
		for _, status := range pod.Status.ContainerStatuses {
			if strings.HasPrefix(status.ContainerID, s.target+"://") {
				s.tell(Info, "the pod of the %s has come back on %s", s.proof, s.target)
				return true, nil
			}
		}
		return false, finding(fmt.Sprintf("pod %s has not come back", pod.Name))
	})
}

// checkResidents waits for the pods that a drain leaves on the node. One that was not ready before is no failure, nor is one that
// uses Docker's socket.
func (s *session) checkResidents(ctx context.Context) error {
	var pending []string
	count := 0
	err := s.await(ctx, "DaemonSet and static pods Ready", func(ctx context.Context) (bool, error) {
		pods, err := s.podsOn(ctx)
		if err != nil {
			return false, err
		}
		pending, count = nil, 0
		ready := map[string]bool{}
		needed := map[string]bool{}
		for owner := range s.before {
			needed[owner] = true
		}
		for i := range pods {
			owner := residentOf(&pods[i])
			if owner == "" || pods[i].DeletionTimestamp != nil {
				continue
			}
			if usesDockerSocket(&pods[i]) {
				needed[owner] = false
			}
			ready[owner] = ready[owner] || podReady(&pods[i]) && runsOn(&pods[i], s.target)
		}
		must := false
		for owner, isReady := range ready {
			if isReady {
				count++
				continue
			}
			pending = append(pending, owner)
			must = must || needed[owner]
		}
		slices.Sort(pending)
		if must {
			return false, finding("not ready: " + strings.Join(pending, ", "))
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if len(pending) > 0 {
		s.tell(Warning, "DaemonSet and static pods that are not ready, and were not before or use Docker's socket: %s", strings.Join(pending, ", "))
	}
	s.tell(Info, "DaemonSet and static pods that are ready: %d", count)
	return nil
}

// runsOn reports whether all containers of a pod are a runtime's: until the kubelet has looked, the status is the old one.
func runsOn(pod *corev1.Pod, runtime string) bool {
	return !slices.ContainsFunc(pod.Status.ContainerStatuses, func(status corev1.ContainerStatus) bool {
		return !strings.HasPrefix(status.ContainerID, runtime+"://")
	})
}

// usesDockerSocket reports whether a pod mounts Docker's socket or a folder that holds it.
func usesDockerSocket(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(volume corev1.Volume) bool {
		return volume.HostPath != nil && slices.Contains([]string{"/var/run/docker.sock", "/run/docker.sock"}, volume.HostPath.Path)
	})
}

// checkHost waits until the agent has looked at the host once more: that CRI and kubelet answer, and that Docker is down. Only what it
// finds, and a pod that cannot start, is held against the node.
func (s *session) checkHost(ctx context.Context) error {
	if s.back != nil {
		return nil // the agent's checks are about the new runtime
	}
	ctx, cancel := context.WithTimeoutCause(ctx, verifyTimeout, fmt.Errorf("%w: waited %s", errNoAnswer, verifyTimeout))
	defer cancel()
	result, err := s.verifyHost(ctx)
	var start *nodejob.StartError
	var refused *nodejob.AdmissionError
	switch {
	case errors.As(err, &refused), errors.As(err, &start) && start.NoPod:
		s.tell(Warning, "the agent has not looked at the host once more, which does not count against the node: %s", err)
		return nil
	case errors.As(err, &start):
		return err
	case err != nil:
		return &nodejob.OutageError{Cause: err}
	case result.Outcome != protocol.OutcomeSucceeded:
		return resultError(result)
	}
	s.tell(Info, "the agent has found the host as it should be")
	return nil
}

// verifyHost returns the result of the host's verification. The pod of the cutover asks for it when it has come back; where that pod is gone,
// or has ended without a result, as one of an older agent does, a Job of its own does.
func (s *session) verifyHost(ctx context.Context) (*protocol.Result, error) {
	spec := s.spec(protocol.PhaseVerify)
	var pod *corev1.Pod
	err := s.retry(ctx, func() (err error) {
		pod, err = s.runner.PhasePod(ctx, s.spec(protocol.PhaseCutover))
		return err
	})
	if err != nil {
		return nil, err
	}
	if pod != nil {
		result, err := s.follower.FollowIn(ctx, protocol.PhaseCutover, spec, nodejob.InService, true)
		if !errors.Is(err, nodejob.ErrEnded) {
			return result, err
		}
	}
	if err := s.ensureJob(ctx, spec); err != nil {
		return nil, err
	}
	return s.follower.Follow(ctx, spec, nodejob.InService, false)
}

// rollback undoes a cutover that the host took for good and that the verification disproved.
func (s *session) rollback(ctx context.Context) error {
	// The canary's sandbox would keep the runtime busy while it is taken down. A Job of an earlier rollback holds that one's result.
	if err := s.remove(ctx, protocol.PhaseCutover, protocol.PhaseVerify, protocol.PhaseRollback, nodejob.PhaseCanary); errors.Is(err, claim.ErrLost) {
		return err
	} else if err != nil {
		s.tell(Warning, "%s", err)
	}
	spec := s.spec(protocol.PhaseRollback)
	spec.Attempt = newRun(s.clock.Now())
	result, err := s.runUnattended(ctx, StageRollback, spec, true, false)
	if err != nil {
		return err
	}
	if result.Outcome == protocol.OutcomeSucceeded || result.Outcome == protocol.OutcomeRolledBack {
		return s.rolledBack(ctx, StageVerify, s.disproved, result)
	}
	result.Message = fmt.Sprintf("%v; and the way back failed: %s", s.disproved, result.Message)
	return s.broken(ctx, StageRollback, result)
}

// rolledBack gives the node back once it serves on the old runtime again.
func (s *session) rolledBack(ctx context.Context, stage Stage, cause error, result *protocol.Result) error {
	failed := &Error{Node: s.name, Stage: stage, Outcome: OutcomeRolledBack, Detail: result.Detail, Hint: resultHint(result), Cause: cause}
	stuck := func(err error) error {
		failed.Outcome, failed.Resumable = OutcomeStuck, true
		if ctx.Err() != nil {
			failed.Outcome = OutcomeInterrupted
		}
		failed.Cause, failed.State = errors.Join(cause, err), s.whereabouts(ctx)
		return failed
	}
	if err := s.awaitRuntime(ctx, s.old, time.Time{}); err != nil {
		return stuck(fmt.Errorf("wait for the old runtime: %w", err))
	}
	undo, cancel := s.undoContext(ctx)
	defer cancel()
	if err := s.remove(undo); err != nil {
		s.tell(Warning, "%s", err)
	}
	cordoned, err := s.node.Uncordon(undo, nodestate.At(nodestate.StateRolledBack, message(stage, cause)), nodestate.RestoreCRISocket)
	if err != nil {
		return stuck(err)
	}
	s.serviced(cordoned)
	s.endLeaving(undo)
	failed.State = fmt.Sprintf("the node is back on %s and serves", s.report.To)
	if cordoned {
		failed.State = fmt.Sprintf("the node is back on %s and cordoned, as before", s.report.To)
	}
	return failed
}

// giveBack uncordons the node and marks it as done.
func (s *session) giveBack(ctx context.Context) error {
	set := nodestate.Set{
		nodestate.AnnotationPhase: string(nodestate.StateDone), nodestate.AnnotationTo: s.report.To, nodestate.AnnotationMessage: "",
	}
	if times, ok := timesOf(s.report.Stages); ok && !s.report.Resumed {
		set[nodestate.AnnotationTook] = times.String()
	}
	cordoned, err := s.node.Uncordon(ctx, set, nodestate.SwitchCRISocket(s.endpoint))
	if err != nil {
		return err
	}
	s.serviced(cordoned)
	s.endLeaving(ctx)
	s.checkMetrics(ctx)
	if err := s.remove(ctx); err != nil {
		s.tell(Warning, "%s", err)
	}
	return nil
}

// checkMetrics comes last: what it finds is no failure, and each request to a kubelet is one more of its own to the API server, to ask
// whether it is allowed. A node that waits for its pods to be Ready should not wait for those.
func (s *session) checkMetrics(ctx context.Context) {
	s.runner.CheckMetrics(ctx, s.name, func(text string) { s.tell(Warning, "%s", text) })
}

// serviced ends the time out of service.
func (s *session) serviced(cordoned bool) {
	s.report.Cordoned = cordoned
	if !s.cordonedAt.IsZero() && !cordoned {
		s.report.OutOfService = s.clock.Now().Sub(s.cordonedAt)
	}
}
