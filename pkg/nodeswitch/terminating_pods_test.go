package nodeswitch

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// deleteDaemonPod deletes a DaemonSet's pod that runs, and whose kubelet does not end it.
func deleteDaemonPod(t *testing.T, s *apiserver.Server, node, name string) {
	t.Helper()
	createDaemonPod(t, s, node, name)
	pods := s.Client().CoreV1().Pods("default")
	pod, err := pods.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Annotations = map[string]string{hollow.NeverEnds: "true"}
	if _, err = pods.Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	setPhase(t, s, name, corev1.PodRunning) // one that has ended goes at once when it is deleted
	if err := pods.Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](1)}); err != nil {
		t.Fatal(err)
	}
}

func setPhase(t *testing.T, s *apiserver.Server, name string, phase corev1.PodPhase) {
	t.Helper()
	pod, err := s.Client().CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if err == nil {
		pod.Status.Phase = phase
		_, err = s.Client().CoreV1().Pods("default").UpdateStatus(context.Background(), pod, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Errorf("set phase of pod %s: %v", name, err)
	}
}

func exists(t *testing.T, s *apiserver.Server, name string) bool {
	t.Helper()
	_, err := s.Client().CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
	}
	return err == nil
}

// TestPodsThatAreLeaving: a cutover waits until pods that are being deleted are gone, for as long as they may take. What has ended and is not taken
// out of the API by the kubelet is removed afterwards; what has not ended is the kubelet's.
func TestPodsThatAreLeaving(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "leaving")
	deleteDaemonPod(t, s, "leaving", "leaving-soon")
	deleteDaemonPod(t, s, "leaving", "leaving-ended")
	deleteDaemonPod(t, s, "leaving", "leaving-runs")
	h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
		if exists(t, s, "leaving-soon") {
			t.Error("the cutover did not wait for a pod that was being deleted")
		}
		setPhase(t, s, "leaving-ended", corev1.PodSucceeded) // the last word of the kubelet that is stopped
		h.Succeed(spec)
	}
	seen := &recorder{}
	ended := make(chan struct{})
	go func() { // the kubelet ends one of them while it is waited for
		defer close(ended)
		for deadline := time.Now().Add(time.Minute); !seen.said("waiting for pods that are being deleted: "); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Error("it was not said what is waited for")
				return
			}
		}
		err := s.Client().CoreV1().Pods("default").Delete(context.Background(), "leaving-soon", metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
		if err != nil {
			t.Error(err)
		}
	}()
	began := time.Now()
	if _, err := quickly(newRollout(s, seen)).Switch(t.Context(), "leaving"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < (leavingMargin+time.Second)/10 { // by the quick clock
		t.Errorf("it did not wait for pods that had time left: %s", took)
	}
	<-ended
	if exists(t, s, "leaving-ended") || !seen.said("pod default/leaving-ended was being deleted before the runtime changed") {
		t.Error("a pod that had ended is left in the API")
	}
	if !exists(t, s, "leaving-runs") {
		t.Error("a pod that had not ended was removed")
	}
	nothingLeft(t, s, "leaving")
}

// TestOwnPodsGoAtOnce: a canary whose kubelet never says that it is gone does not outlast its run, and the next canary has a name of its own.
func TestOwnPodsGoAtOnce(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "canaries")
	h.CanaryHangs = true
	if _, err := newRollout(s, &recorder{}).Switch(t.Context(), "canaries"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, s, "canaries")
	if _, err := newRollout(s, &recorder{}).Rollback(t.Context(), "canaries"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, s, "canaries")
	if len(h.Canaries()) < 2 { // a third one, before the drain, may be over before the kubelet has seen it
		t.Errorf("canaries %v", h.Canaries())
	}
}
