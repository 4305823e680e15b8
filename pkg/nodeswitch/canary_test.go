package nodeswitch

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// canaryOf is the canary's pod of a hollow's node, nil after a wait in which there was none.
func canaryOf(h *hollow.Node, spec protocol.Spec, wait time.Duration) *corev1.Pod {
	set := nodejob.NodeLabels(spec.Node)
	set[nodejob.LabelRun], set[nodejob.LabelPhase] = spec.Run, nodejob.PhaseCanary
	for deadline := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		pod, err := (&nodejob.Runner{Client: h.Client}).Pod(context.Background(), set)
		if err != nil {
			h.T.Error(err)
		}
		if pod != nil {
			return pod
		}
		if time.Now().After(deadline) {
			return nil
		}
	}
}

// TestCanaryAhead: the canary starts when the node reports the new runtime, not before and not only after the host's result, and the
// verification takes that one.
func TestCanaryAhead(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "ahead")
	var first *corev1.Pod
	h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
		if canaryOf(h, spec, 2*time.Second) != nil {
			t.Error("the canary was made while the node was on Docker")
		}
		h.SwitchTo(containerdVersion)
		if first = canaryOf(h, spec, 20*time.Second); first == nil {
			t.Error("no canary before the host's result")
		}
		h.Result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded, RuntimeVersion: containerdVersion})
	}
	h.Script[protocol.PhaseVerify] = func(h *hollow.Node, spec protocol.Spec) {
		if now := canaryOf(h, spec, 0); now == nil || first == nil || now.UID != first.UID {
			t.Error("the canary that was there was not taken")
		}
		h.Succeed(spec)
	}
	if _, err := newRollout(s, &recorder{}).Switch(t.Context(), "ahead"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, s, "ahead")
}

// TestCanaryAheadOfFailures: a canary that was begun is no proof of a cutover that the host undoes, and does not stay; one that has ended
// when the verification begins is made again.
func TestCanaryAheadOfFailures(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "ahead-undone")
	h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
		h.SwitchTo(containerdVersion)
		if canaryOf(h, spec, 20*time.Second) == nil {
			t.Error("no canary")
		}
		h.SwitchTo(dockerVersion)
		h.Result(spec, protocol.Result{Outcome: protocol.OutcomeRolledBack, Message: "containerd is silent"})
	}
	_, err := newRollout(s, &recorder{}).Switch(t.Context(), "ahead-undone")
	wantError(t, err, OutcomeRolledBack, "containerd is silent")
	node := getNode(t, s, "ahead-undone")
	if node.Spec.Unschedulable || node.Annotations[nodestate.AnnotationPhase] != string(nodestate.StateRolledBack) {
		t.Errorf("unschedulable %t, annotations %v", node.Spec.Unschedulable, node.Annotations)
	}
	nothingLeft(t, s, "ahead-undone")

	h = hollow.New(t, s, "ahead-ended")
	h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
		h.SwitchTo(containerdVersion)
		pod := canaryOf(h, spec, 20*time.Second)
		if pod == nil {
			t.Error("no canary")
			return
		}
		h.AwaitRunning(pod.Name)
		status := h.Running(pod, 0)
		status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Error"}}
		h.SetStatus(context.Background(), pod, corev1.PodFailed, status)
		h.Result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded, RuntimeVersion: containerdVersion})
	}
	if _, err := newRollout(s, &recorder{}).Switch(t.Context(), "ahead-ended"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, s, "ahead-ended")
}
