package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// verification proves the runtime that the node has now.
type verification struct{ *session }

// verify proves the new runtime from outside the host. What fails is in s.disproved, to be undone.
func (s *verification) verify(ctx context.Context) error {
	s.pods.noteLeaving(ctx)
	err := s.checkNode(ctx)
	if err == nil {
		err = s.checkAtOnce(ctx, s.checkOwnPod, s.checkResidents, s.checkCanary, s.checkHost)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return s.ending.leave(ctx, StageVerify, OutcomeInterrupted, context.Cause(ctx))
	case isOutage(err):
		return s.ending.leave(ctx, StageVerify, OutcomeStuck, err)
	default:
		s.disproved = err
		return &Error{Node: s.name, Stage: StageVerify, Outcome: OutcomeStuck, Cause: err}
	}
}

// errOtherFailed ends the checks beside one that failed.
var errOtherFailed = errors.New("another check failed")

// checkAtOnce waits for what comes back by itself while the canary runs: the node is out of service. It returns what failed first.
func (s *verification) checkAtOnce(ctx context.Context, checks ...func(context.Context) error) error {
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

// await waits for a check of the verification; the last word of look is the error.
func (s *verification) await(ctx context.Context, what string, look func(context.Context) (bool, error)) error {
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
func (s *verification) awaitRuntime(ctx context.Context, runtime string, last time.Time) error {
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

func (s *verification) checkNode(ctx context.Context) error {
	last := s.lastHeartbeat
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
func (s *verification) checkOwnPod(ctx context.Context) error {
	return s.await(ctx, fmt.Sprintf("pod of the %s back on %s", s.proof, s.target), func(ctx context.Context) (bool, error) {
		pod, err := s.runner.PhasePod(ctx, s.host.spec(s.proof))
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
func (s *verification) checkResidents(ctx context.Context) error {
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
func (s *verification) checkHost(ctx context.Context) error {
	if !s.asksHost {
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
func (s *verification) verifyHost(ctx context.Context) (*protocol.Result, error) {
	spec := s.host.spec(protocol.PhaseVerify)
	var pod *corev1.Pod
	err := s.retry(ctx, func() (err error) {
		pod, err = s.runner.PhasePod(ctx, s.host.spec(protocol.PhaseCutover))
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
	if err := s.host.ensureJob(ctx, spec); err != nil {
		return nil, err
	}
	return s.follower.Follow(ctx, spec, nodejob.InService, false)
}
