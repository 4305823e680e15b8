package nodeswitch

import (
	"context"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/oldapi"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
)

// leavingMargin is what a kubelet gets beyond a pod's grace period to say that the pod is gone.
const leavingMargin = 30 * time.Second

// awaitLeaving waits until the pods that are being deleted on the node are gone, also those that a drain leaves alone: a kubelet of 1.22 to 1.26 that
// is started while a pod has ended and is being deleted never says that it is gone (pkg/kubelet/pod_workers.go: it takes it for finished). A pod that
// takes longer than its grace period is not waited for. The host stops its containers with the others, and endLeaving ends it.
func (s *nodePods) awaitLeaving(ctx context.Context) error {
	if s.unready {
		return nil // its kubelet says nothing
	}
	began := s.clock.Now()
	told := false
	return s.watch.Await(ctx, func() (bool, error) {
		pods, err := s.podsOn(ctx)
		if err != nil {
			return true, err
		}
		waited := s.clock.Now().Sub(began)
		s.leaving = map[types.UID]bool{}
		var pending []string
		for i := range pods {
			if !isLeaving(&pods[i]) {
				continue
			}
			s.leaving[pods[i].UID] = true
			grace := time.Duration(ptr.Deref(pods[i].DeletionGracePeriodSeconds, 0)) * time.Second
			if limit := s.options.Drain.Timeout; waited < grace+leavingMargin && (limit <= 0 || waited < limit) {
				pending = append(pending, pods[i].Namespace+"/"+pods[i].Name)
			}
		}
		if len(pending) > 0 && !told {
			told = true
			slices.Sort(pending)
			s.tell(Info, "waiting for pods that are being deleted: %s", strings.Join(pending, ", "))
		}
		return len(pending) == 0, nil
	})
}

// isLeaving reports whether a kubelet is about to end a pod. With a grace period of 0 it has done so, and only finalizers keep the pod.
func isLeaving(pod *corev1.Pod) bool {
	_, static := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return pod.DeletionTimestamp != nil && ptr.Deref(pod.DeletionGracePeriodSeconds, 0) > 0 && !static
}

// noteLeaving takes the pods that are being deleted now for those from before a cutover that an earlier run has seen.
func (s *nodePods) noteLeaving(ctx context.Context) {
	if s.leaving != nil || preflight.IsPreparedOnly(s.state, s.from) {
		return
	}
	s.leaving = map[types.UID]bool{}
	pods, err := s.podsOn(ctx)
	if err != nil {
		return // they are only not ended
	}
	for i := range pods {
		if isLeaving(&pods[i]) {
			s.leaving[pods[i].UID] = true
		}
	}
}

// endLeaving removes the pods from the API that were being deleted before the runtime changed, and whose containers have ended by the word of the
// kubelet. The runtime that they ran on is down. A pod whose containers had not ended when the kubelet was stopped is ended by the kubelet itself.
func (s *nodePods) endLeaving(ctx context.Context) {
	if len(s.leaving) == 0 {
		return
	}
	pods, err := s.podsOn(ctx)
	if err != nil {
		s.tell(Warning, "look for pods that were being deleted before the runtime changed: %s", err)
		return
	}
	for i := range pods {
		pod := &pods[i]
		if !s.leaving[pod.UID] || !isLeaving(pod) || pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			continue
		}
		switch err := s.removeFromAPI(ctx, pod); {
		case err == nil:
			s.tell(Info, "pod %s/%s was being deleted before the runtime changed and had ended; it was removed from the API", pod.Namespace, pod.Name)
		case !apierrors.IsNotFound(err) && !apierrors.IsConflict(err):
			s.tell(Warning, "pod %s/%s was being deleted before the runtime changed and has ended, but is still in the API: %v; "+
				"to remove it: kubectl delete pod -n %s %s --grace-period=0 --force", pod.Namespace, pod.Name, err, pod.Namespace, pod.Name)
		}
	}
}

// removeFromAPI removes a pod that has ended at once. An eviction does so too, without regard to budgets, and a switch has the right to it.
func (s *nodePods) removeFromAPI(ctx context.Context, pod *corev1.Pod) error {
	options := metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0), Preconditions: &metav1.Preconditions{UID: &pod.UID}}
	if s.options.Drain.DisableEviction || pod.Namespace == nodejob.Namespace {
		return s.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, options)
	}
	return oldapi.Evict(ctx, s.client, &policyv1.Eviction{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}, DeleteOptions: &options,
	})
}
