package nodeswitch

import (
	"context"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

func TestDrainTimeoutUncordons(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "budget")
	createPod(t, s, "budget", "guarded")
	createBudget(t, s, "guard", "guarded")
	observer := &recorder{}
	r := newRollout(s, observer, func(o *Options) { o.Drain.Timeout = 3 * time.Second })
	_, err := r.Switch(t.Context(), "budget")
	failed := wantError(t, err, OutcomeTimeout, "PodDisruptionBudget guard (1 healthy, needs 1)")
	if !failed.Resumable {
		t.Error("it is not resumable")
	}
	if !observer.said("pod default/guarded cannot be evicted: PodDisruptionBudget guard (1 healthy, needs 1), since ") {
		t.Error("the budget was not told while the drain went on")
	}
	node := getNode(t, s, "budget")
	if node.Spec.Unschedulable || node.Annotations[nodestate.AnnotationPhase] != string(nodestate.StatePrepared) {
		t.Errorf("unschedulable %t, annotations %v", node.Spec.Unschedulable, node.Annotations)
	}
	nothingLeft(t, s, "budget")

	// The next run takes up where this one was, and does not prepare again.
	run := node.Annotations[nodestate.AnnotationRun]
	s.RemoveBudget(t, "default", "guard")
	report, err := newRollout(s, &recorder{}).Switch(t.Context(), "budget")
	if err != nil {
		t.Fatal(err)
	}
	if !report.Resumed || report.Run != run {
		t.Errorf("report %+v, want run %s", report, run)
	}
	results := 0
	for _, event := range h.Events() {
		if event.Result != nil && event.Phase == protocol.PhasePrepare {
			results++
		}
	}
	if results != 1 {
		t.Errorf("prepared %d times", results)
	}
}

// createBudget makes a budget that allows nothing; its controller, which does not run here, would write this status.
func createBudget(t *testing.T, s *apiserver.Server, name, app string) {
	t.Helper()
	s.PutBudget(t, &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: ptr.To(intstr.FromInt32(1)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
		},
		Status: policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 1, CurrentHealthy: 1, DesiredHealthy: 1, ExpectedPods: 1},
	})
}

// TestInterrupt ends the run at each stage and checks where it leaves the node; the next run has to finish.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		stage    Stage
		cordoned bool
		state    nodestate.State
	}{
		{StagePrepare, false, nodestate.StatePreparing},
		{StageDrain, false, nodestate.StatePrepared},
		{StageCutover, true, nodestate.StateCutover},
		{StageVerify, true, nodestate.StateVerifying},
		{StageUncordon, true, nodestate.StateVerifying},
	} {
		name := "interrupt-" + string(test.stage)
		t.Run(string(test.stage), func(t *testing.T) {
			t.Parallel()
			s := server.Get(t)
			h := hollow.New(t, s, name)
			slow := func(h *hollow.Node, spec protocol.Spec) {
				time.Sleep(1500 * time.Millisecond)
				h.Succeed(spec)
			}
			h.Script[protocol.PhasePrepare], h.Script[protocol.PhaseCutover] = slow, slow
			if test.stage == StageDrain {
				createPod(t, s, name, "slow", func(pod *corev1.Pod) { pod.Finalizers = []string{"example.com/wait"} })
				t.Cleanup(func() { dropFinalizers(t, s, "slow") })
			}
			signal := errors.New("interrupted: test")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			observer := &recorder{onStage: func(stage Stage) {
				switch {
				case stage == StageUncordon && stage == test.stage:
					cancel(signal) // it is over at once
				case stage == test.stage:
					go inMidst(h, stage, func() { cancel(signal) })
				}
			}}
			_, err := newRollout(s, observer).Switch(ctx, name)
			failed := wantError(t, err, OutcomeInterrupted, "interrupted: test")
			if !failed.Resumable || failed.Stage != test.stage {
				t.Errorf("stage %s, resumable %t: %v", failed.Stage, failed.Resumable, err)
			}
			node := getNode(t, s, name)
			if got := nodestate.State(node.Annotations[nodestate.AnnotationPhase]); got != test.state || node.Spec.Unschedulable != test.cordoned {
				t.Errorf("state %q, unschedulable %t", got, node.Spec.Unschedulable)
			}
			if _, err := s.Client().CoordinationV1().Leases(nodejob.Namespace).Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("the claim is left: %v", err)
			}
			if test.stage == StageDrain {
				dropFinalizers(t, s, "slow")
			}
			report, err := newRollout(s, &recorder{}).Switch(t.Context(), name)
			if err != nil {
				t.Fatalf("the next run: %v", err)
			}
			if node := getNode(t, s, name); !report.Resumed || node.Spec.Unschedulable || node.Annotations[nodestate.AnnotationPhase] != string(nodestate.StateDone) {
				t.Errorf("resumed %t, unschedulable %t, annotations %v", report.Resumed, node.Spec.Unschedulable, node.Annotations)
			}
			nothingLeft(t, s, name)
		})
	}
}

func dropFinalizers(t *testing.T, s *apiserver.Server, pod string) {
	t.Helper()
	patch := []byte(`{"metadata":{"finalizers":null}}`)
	_, err := s.Client().CoreV1().Pods("default").Patch(context.Background(), pod, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}
