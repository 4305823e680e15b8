package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// left puts a node where an earlier run left it.
func left(state nodestate.State, cordonedByRun bool) func(*corev1.Node) {
	return func(node *corev1.Node) {
		maps.Copy(node.Annotations, map[string]string{
			nodestate.AnnotationPhase: string(state), nodestate.AnnotationRun: "r1", nodestate.AnnotationFrom: dockerVersion,
			nodestate.AnnotationCRISocket: "unix:///var/run/containerd/containerd.sock", nodestate.AnnotationOldCRISocket: "/var/run/dockershim.sock",
		})
		if cordonedByRun {
			node.Spec.Unschedulable = true
			node.Annotations[nodestate.AnnotationWasUnschedulable] = "false"
		}
	}
}

// newSwitched is a node on containerd.
func newSwitched(t *testing.T, s *apiserver.Server, name string, change ...func(*corev1.Node)) *hollow.Node {
	t.Helper()
	h := hollow.New(t, s, name, change...)
	h.SwitchTo(containerdVersion)
	// Heartbeats are whole seconds, and here no kubelet takes its time.
	h.UpdateNode(func(node *corev1.Node) {
		node.Status.Conditions[0].LastHeartbeatTime = metav1.NewTime(time.Now().Add(-time.Minute))
	})
	return h
}

func TestRollback(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "back", func(node *corev1.Node) {
		node.Annotations[nodestate.AnnotationCRISocket] = "/var/run/dockershim.sock"
	})
	report, err := newRollout(s, &recorder{}).Switch(t.Context(), "back")
	if err != nil {
		t.Fatal(err)
	}
	if got := getNode(t, s, "back").Annotations[nodestate.AnnotationFromEndpoint]; got != "dockershim" {
		t.Errorf("the old endpoint is not remembered: %q", got)
	}
	run := report.Run
	createPod(t, s, "back", "back-web")
	createDaemonPod(t, s, "back", "back-proxy")
	observer := &recorder{}
	report, err = newRollout(s, observer, func(o *Options) { o.Soak = time.Second }).Rollback(t.Context(), "back")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := observer.stages(), "claim drain rollback verify uncordon soak"; got != want {
		t.Errorf("stages %q, want %q", got, want)
	}
	if report.Run != run || report.From != containerdVersion || report.To != dockerVersion || report.OutOfService <= 0 || report.Resumed {
		t.Errorf("report %+v", report)
	}
	if !observer.said("the pod of the rollback has come back on docker") {
		t.Error("the Job's own pod was not looked at")
	}
	if slices.ContainsFunc(observer.updates, func(u Update) bool { return u.Kind == AgentStep && u.Step.ID == "images" }) {
		t.Error("steps of the switch were reported as if they were done now")
	}
	node := getNode(t, s, "back")
	if node.Spec.Unschedulable || node.Annotations[nodestate.AnnotationPhase] != string(nodestate.StateRolledBack) ||
		node.Annotations[nodestate.AnnotationCRISocket] != "/var/run/dockershim.sock" {
		t.Errorf("unschedulable %t, annotations %v", node.Spec.Unschedulable, node.Annotations)
	}
	for _, key := range []string{nodestate.AnnotationWasUnschedulable, nodestate.AnnotationOldCRISocket} {
		if _, ok := node.Annotations[key]; ok {
			t.Errorf("annotation %s is left", key)
		}
	}
	if _, err := s.Client().CoreV1().Pods("default").Get(t.Context(), "back-web", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the pod was not evicted: %v", err)
	}
	if proxy, err := s.Client().CoreV1().Pods("default").Get(t.Context(), "back-proxy", metav1.GetOptions{}); err != nil || !runsOn(proxy, "docker") {
		t.Errorf("the node was given back before its DaemonSet's pod was on Docker: %v", err)
	}
	if fmt.Sprint(h.Phases()) != "[prepare cutover verify rollback]" {
		t.Errorf("phases %v", h.Phases())
	}
	nothingLeft(t, s, "back")
	_, err = newRollout(s, &recorder{}).Rollback(t.Context(), "back")
	_ = wantError(t, err, OutcomeRefused, "already on "+dockerVersion)
	nothingLeft(t, s, "back")
}

// TestRollbackFrom has a row for each place where an earlier run can have left a node, and for how it ends.
func TestRollbackFrom(t *testing.T) {
	t.Parallel()
	ends := func(outcome protocol.Outcome) func(*hollow.Node) {
		return func(h *hollow.Node) {
			h.Script[protocol.PhaseRollback] = func(h *hollow.Node, spec protocol.Spec) {
				h.Result(spec, protocol.Result{Outcome: outcome, Message: "so it is", Hint: "do this"})
			}
		}
	}
	pulls := func(h *hollow.Node) {
		h.PodStatus = &corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "manifest unknown"}}}
	}
	for _, test := range []struct {
		name     string
		state    nodestate.State
		cordoned bool // by the run
		onDocker bool
		set      func(*hollow.Node)
		outcome  Outcome
		text     string // empty: it succeeds
		after    nodestate.State
		stages   string
		isLeft   bool // cordoned
	}{
		{name: "back-prepared", state: nodestate.StatePrepared, onDocker: true, after: nodestate.StateRolledBack, stages: "claim rollback verify uncordon"},
		{name: "back-verifying", state: nodestate.StateVerifying, cordoned: true, after: nodestate.StateRolledBack, stages: "claim drain rollback verify uncordon"},
		{name: "back-broken", state: nodestate.StateBroken, cordoned: true, after: nodestate.StateRolledBack, stages: "claim drain rollback verify uncordon"},
		{name: "back-resumed", state: nodestate.StateRollingBack, cordoned: true, after: nodestate.StateRolledBack, stages: "claim drain rollback verify uncordon"},
		{name: "back-fails", state: nodestate.StateDone, set: ends(protocol.OutcomeBroken), outcome: OutcomeStuck, text: "so it is", after: nodestate.StateBroken, stages: "claim drain rollback", isLeft: true},
		{name: "back-no-journal", state: nodestate.StateDone, set: ends(protocol.OutcomeRefused), outcome: OutcomeRefused, text: "so it is", after: nodestate.StateDone, stages: "claim drain rollback"},
		{name: "back-no-journal-broken", state: nodestate.StateBroken, cordoned: true, set: ends(protocol.OutcomeRefused), outcome: OutcomeStuck, text: "so it is", after: nodestate.StateBroken, stages: "claim drain rollback", isLeft: true},
		{name: "back-no-pod", state: nodestate.StateDone, set: pulls, outcome: OutcomeFailed, text: "manifest unknown", after: nodestate.StateDone, stages: "claim drain rollback"},
		{
			name: "back-canary", state: nodestate.StateDone, outcome: OutcomeStuck, text: "volume: read-only", after: nodestate.StateRollingBack, isLeft: true,
			set: func(h *hollow.Node) { h.Checks[1] = nodejob.CanaryCheck{Name: "volume", Message: "read-only"} }, stages: "claim drain rollback verify",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := server.Get(t)
			create := newSwitched
			if test.onDocker {
				create = hollow.New
			}
			h := create(t, s, test.name, left(test.state, test.cordoned))
			if test.set != nil {
				test.set(h)
			}
			observer := &recorder{}
			_, err := newRollout(s, observer).Rollback(t.Context(), test.name)
			switch {
			case test.text != "":
				failed := wantError(t, err, test.outcome, test.text)
				if test.name == "back-no-pod" && !strings.Contains(failed.Hint, "--image-pull-secret") {
					t.Errorf("hint %q", failed.Hint)
				}
			case err != nil:
				t.Fatal(err)
			default:
				nothingLeft(t, s, test.name)
			}
			if got := observer.stages(); got != test.stages {
				t.Errorf("stages %q, want %q", got, test.stages)
			}
			node := getNode(t, s, test.name)
			if got := nodestate.State(node.Annotations[nodestate.AnnotationPhase]); got != test.after || node.Spec.Unschedulable != test.isLeft {
				t.Errorf("state %q, unschedulable %t", got, node.Spec.Unschedulable)
			}
			if message := node.Annotations[nodestate.AnnotationMessage]; test.text == "so it is" && !strings.Contains(message, test.text) {
				t.Errorf("status would say %q", message)
			}
			if slices.Contains(h.Phases(), protocol.PhaseCutover) || slices.Contains(h.Phases(), protocol.PhasePrepare) {
				t.Errorf("it was switched forth again: %v", h.Phases())
			}
			if test.name != "back-canary" {
				return
			}
			h.Checks[1].OK = true
			if report, err := newRollout(s, &recorder{}).Rollback(t.Context(), test.name); err != nil || !report.Resumed {
				t.Fatalf("the next run: %+v, %v", report, err)
			}
			if node := getNode(t, s, test.name); node.Spec.Unschedulable {
				t.Error("the node is still cordoned")
			}
		})
	}
}

func TestRollbackInterrupted(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		stage    Stage
		state    nodestate.State
		cordoned bool
	}{
		{StageDrain, nodestate.StateDone, false},
		{StageRollback, nodestate.StateRollingBack, true},
		{StageVerify, nodestate.StateRollingBack, true},
	} {
		name := "back-interrupt-" + string(test.stage)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := server.Get(t)
			h := newSwitched(t, s, name, left(nodestate.StateDone, false))
			h.Script[protocol.PhaseRollback] = func(h *hollow.Node, spec protocol.Spec) {
				time.Sleep(1500 * time.Millisecond)
				h.Succeed(spec)
			}
			if test.stage == StageDrain {
				createPod(t, s, name, "back-slow", func(pod *corev1.Pod) { pod.Finalizers = []string{"example.com/wait"} })
				t.Cleanup(func() { dropFinalizers(t, s, "back-slow") })
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			observer := &recorder{onStage: func(stage Stage) {
				if stage == test.stage {
					go inMidst(h, stage, func() { cancel(errors.New("interrupted: test")) })
				}
			}}
			_, err := newRollout(s, observer).Rollback(ctx, name)
			if failed := wantError(t, err, OutcomeInterrupted, "interrupted: test"); !failed.Resumable {
				t.Error("it is not resumable")
			}
			node := getNode(t, s, name)
			if got := nodestate.State(node.Annotations[nodestate.AnnotationPhase]); got != test.state || node.Spec.Unschedulable != test.cordoned {
				t.Errorf("state %q, unschedulable %t", got, node.Spec.Unschedulable)
			}
			if test.stage == StageRollback {
				_, err := newRollout(s, &recorder{}).Switch(t.Context(), name)
				_ = wantError(t, err, OutcomeRefused, preflight.RollingBack)
			}
			if test.stage == StageDrain {
				dropFinalizers(t, s, "back-slow")
			}
			if _, err := newRollout(s, &recorder{}).Rollback(t.Context(), name); err != nil {
				t.Fatalf("the next run: %v", err)
			}
			if node := getNode(t, s, name); node.Spec.Unschedulable || node.Annotations[nodestate.AnnotationPhase] != string(nodestate.StateRolledBack) {
				t.Errorf("unschedulable %t, annotations %v", node.Spec.Unschedulable, node.Annotations)
			}
			nothingLeft(t, s, name)
		})
	}
}
