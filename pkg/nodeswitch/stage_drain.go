package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// nodePods are the pods on the node: what a drain takes off it, what stays, and what is being deleted.
type nodePods struct{ *session }

// drain cordons the node and empties it.
func (s *nodePods) drain(ctx context.Context) error {
	giveUp := func(cause error, outcome Outcome) *Error {
		failed := s.course.giveUp(ctx, StageDrain, cause, outcome)
		failed.Resumable = true
		return failed
	}
	more, err := s.course.beforeCordon(ctx)
	if err != nil {
		outcome := failedOrInterrupted(ctx)
		if admissionHint(err) != "" {
			outcome = OutcomeRefused
		}
		return giveUp(err, outcome)
	}
	if err := s.rememberBefore(ctx); err != nil {
		return giveUp(err, failedOrInterrupted(ctx))
	}
	err = s.empty(ctx, more)
	if err == nil {
		return nil
	}
	return giveUp(err, s.drainOutcome(ctx, err))
}

// drainOutcome is how a drain that failed leaves the node.
func (s *nodePods) drainOutcome(ctx context.Context, err error) Outcome {
	var timeout *drain.TimeoutError
	if errors.As(err, &timeout) {
		return OutcomeTimeout
	}
	return failedOrInterrupted(ctx)
}

// rememberBefore notes what the node looks like while it still serves on the old runtime.
func (s *nodePods) rememberBefore(ctx context.Context) error {
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
	s.lastHeartbeat = heartbeat(node)
	if inventory.FromNode(node).Runtime == s.target {
		s.lastHeartbeat = time.Time{} // a kubelet whose status does not change says so every five minutes only
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

// maxDrains bounds how often a node is drained in one run: something that brings pods back each time is for a person.
const maxDrains = 3

// empty cordons the node, with other annotations in the same request, and removes its pods as kubectl drain does.
func (s *nodePods) empty(ctx context.Context, more nodestate.Set) error {
	options := s.options.Drain
	if s.unready && options.SkipWaitForDeleteTimeoutSeconds == 0 {
		options.SkipWaitForDeleteTimeoutSeconds = deadPodSeconds
	}
	wasCordoned, err := s.node.Cordon(ctx, more)
	if err != nil {
		return err
	}
	if !wasCordoned && s.cordonedAt.IsZero() {
		s.cordonedAt = s.clock.Now()
	}
	if err := drain.New(s.client, options, &drainReport{session: s.session}, s.clock.Now).Watching(s.watch).Drain(ctx, s.name); err != nil {
		return err
	}
	return s.awaitLeaving(ctx)
}

// keepEmpty looks at the node again right before the host is asked to change the runtime: since its drain, an administrator or a reboot
// manager may have uncordoned it. Pods that came since would be stopped without regard to their PodDisruptionBudgets. Where the node is not as
// the drain left it, it is drained again. A watch may be late, so that node and pods are read as they are now; node is as the API server has
// returned it just now, or nil.
func (s *nodePods) keepEmpty(ctx context.Context, node *corev1.Node) error {
	for drains := 1; ; drains++ {
		why, err := s.whyNotEmpty(ctx, node)
		node = nil
		if err != nil || why == "" {
			return err
		}
		if drains == maxDrains {
			return fmt.Errorf("%s, although it was drained %d times", why, drains)
		}
		s.tell(Info, "%s: draining it again", why)
		if err := s.empty(ctx, nil); err != nil {
			return err
		}
	}
}

// whyNotEmpty says how the node differs from what a drain leaves; empty if it does not.
func (s *nodePods) whyNotEmpty(ctx context.Context, node *corev1.Node) (string, error) {
	if node == nil {
		var err error
		if node, err = s.getNode(ctx, s.name); err != nil {
			return "", err
		}
	}
	if !node.Spec.Unschedulable {
		return "the node was uncordoned after its drain", nil
	}
	var landed []string
	err := s.retry(ctx, func() error {
		pods, err := drain.New(s.client, s.options.Drain, nil, s.clock.Now).Check(ctx, s.name)
		landed = nil
		for i := range pods {
			if pods[i].DeletionTimestamp == nil {
				landed = append(landed, pods[i].Namespace+"/"+pods[i].Name)
			}
		}
		return err
	})
	if err != nil {
		return "", errors.Join(errors.New("look for pods that came to the node after its drain"), err)
	}
	if len(landed) > 0 {
		return "pods came to the node after its drain: " + strings.Join(landed, ", "), nil
	}
	return "", nil
}
