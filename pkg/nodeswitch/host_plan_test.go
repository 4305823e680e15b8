package nodeswitch

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// TestLookAtHost: what the agent says arrives whole, the node is not touched, and nothing of the Job is left.
func TestLookAtHost(t *testing.T) {
	s := server.Get(t)
	h := hollow.New(t, s, "looked-at")
	before := getNode(t, s, h.Name)
	plan, err := newRollout(s, &recorder{}).LookAtHost(t.Context(), h.Name)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Facts.KubeletVersion != "v1.23.17" || len(plan.Findings) != 1 || len(plan.Steps) != 1 {
		t.Errorf("%+v", plan)
	}
	if len(plan.Files) != 2 || plan.Files[0].Diff != "--- /a\n+++ /a\n" || plan.Files[0].Continues || plan.Files[1].Path != "/b" {
		t.Errorf("%+v", plan.Files)
	}
	after := getNode(t, s, h.Name)
	if len(after.Annotations) != len(before.Annotations) || after.Spec.Unschedulable {
		t.Errorf("the node was changed: %v", after.Annotations)
	}
	jobs, err := s.Client().BatchV1().Jobs(nodejob.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: nodejob.NodeLabels(h.Name)})})
	if err != nil || len(jobs.Items) != 0 {
		t.Errorf("jobs are left: %v, %v", jobs.Items, err)
	}
	leases, err := s.Client().CoordinationV1().Leases(nodejob.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(leases.Items) != 0 {
		t.Errorf("a look claims nothing: %v, %v", leases.Items, err)
	}
}

// TestLookFails: why is in the error, and the Job is gone.
func TestLookFails(t *testing.T) {
	s := server.Get(t)
	h := hollow.New(t, s, "looks-not")
	h.Script[protocol.PhasePlan] = func(h *hollow.Node, spec protocol.Spec) {
		h.Result(spec, protocol.Result{Outcome: protocol.OutcomeRefused, Message: "the disk is on fire"})
	}
	if _, err := newRollout(s, &recorder{}).LookAtHost(t.Context(), h.Name); err == nil || !strings.Contains(err.Error(), "the disk is on fire") {
		t.Errorf("%v", err)
	}
	h = hollow.New(t, s, "looks-never")
	h.PodStatus = &corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImageNeverPull", Message: "no such image"}}}
	if _, err := newRollout(s, &recorder{}).LookAtHost(t.Context(), h.Name); err == nil || !strings.Contains(err.Error(), "no such image") {
		t.Errorf("%v", err)
	}
}
