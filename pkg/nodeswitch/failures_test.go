package nodeswitch

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// TestFailures has one row per way in which a phase can end badly.
func TestFailures(t *testing.T) {
	t.Parallel()
	ends := func(outcome protocol.Outcome, text string) func(*hollow.Node, protocol.Spec) {
		return func(h *hollow.Node, spec protocol.Spec) {
			h.Result(spec, protocol.Result{Outcome: outcome, Message: text, FailedStep: "some-step", Detail: "captured output", Hint: "do this"})
		}
	}
	for _, test := range []struct {
		name    string
		set     func(*hollow.Node)
		outcome Outcome
		text    string
		state   nodestate.State
		stages  string
		// cordoned is how the node is left, everCordoned whether it ever was.
		cordoned, everCordoned bool
		runtime                string
	}{
		{
			name:    "prepare-refused",
			set:     func(h *hollow.Node) { h.Script[protocol.PhasePrepare] = ends(protocol.OutcomeRefused, "no systemd") },
			outcome: OutcomeRefused, text: "some-step: no systemd", state: nodestate.StateFailed, stages: "claim prepare", runtime: dockerVersion,
		},
		{
			name: "rehearsal-undone",
			set: func(h *hollow.Node) {
				h.Script[protocol.PhasePrepare] = ends(protocol.OutcomeRolledBack, "no-such-plugin")
			},
			outcome: OutcomeRefused, text: "no-such-plugin", state: nodestate.StateFailed, stages: "claim prepare", runtime: dockerVersion,
		},
		{
			name: "prepare-broken",
			set: func(h *hollow.Node) {
				h.Script[protocol.PhasePrepare] = ends(protocol.OutcomeBroken, "containerd does not start")
			},
			outcome: OutcomeStuck, text: "containerd does not start", state: nodestate.StateBroken, stages: "claim prepare", runtime: dockerVersion,
		},
		{
			name: "cutover-undone",
			set: func(h *hollow.Node) {
				h.Script[protocol.PhaseCutover] = ends(protocol.OutcomeRolledBack, "kubelet refuses")
			},
			outcome: OutcomeRolledBack, text: "kubelet refuses", state: nodestate.StateRolledBack, stages: "claim prepare drain cutover", everCordoned: true, runtime: dockerVersion,
		},
		{
			name:    "cutover-refused",
			set:     func(h *hollow.Node) { h.Script[protocol.PhaseCutover] = ends(protocol.OutcomeRefused, "another run") },
			outcome: OutcomeRefused, text: "another run", state: nodestate.StateFailed, stages: "claim prepare drain cutover", everCordoned: true, runtime: dockerVersion,
		},
		{
			name: "cutover-broken",
			set: func(h *hollow.Node) {
				h.Script[protocol.PhaseCutover] = ends(protocol.OutcomeBroken, "neither runtime")
			},
			outcome: OutcomeStuck, text: "neither runtime", state: nodestate.StateBroken, stages: "claim prepare drain cutover", cordoned: true, everCordoned: true, runtime: dockerVersion,
		},
		{
			name:    "canary-fails",
			set:     func(h *hollow.Node) { h.Checks[1] = nodejob.CanaryCheck{Name: "volume", Message: "read-only"} },
			outcome: OutcomeRolledBack, text: "volume: read-only", state: nodestate.StateRolledBack, stages: "claim prepare drain cutover verify rollback", everCordoned: true, runtime: dockerVersion,
		},
		{
			name: "host-disproves",
			set: func(h *hollow.Node) {
				h.Script[protocol.PhaseVerify] = ends(protocol.OutcomeRefused, "docker.service is active")
			},
			outcome: OutcomeRolledBack, text: "some-step: docker.service is active", state: nodestate.StateRolledBack, stages: "claim prepare drain cutover verify rollback", everCordoned: true, runtime: dockerVersion,
		},
		{
			name: "way-back-fails",
			set: func(h *hollow.Node) {
				h.Checks[1] = nodejob.CanaryCheck{Name: "volume", Message: "read-only"}
				h.Script[protocol.PhaseRollback] = ends(protocol.OutcomeBroken, "docker is gone")
			},
			outcome: OutcomeStuck, text: "docker is gone", state: nodestate.StateBroken, stages: "claim prepare drain cutover verify rollback", cordoned: true, everCordoned: true, runtime: containerdVersion,
		},
		{
			name: "image-pull",
			set: func(h *hollow.Node) {
				h.PodStatus = &corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "manifest unknown" + strings.Repeat(" at a registry", 50)}}}
			},
			outcome: OutcomeRefused, text: agentImage + " cannot be pulled: ErrImagePull: manifest unknown", state: nodestate.StateFailed, stages: "claim prepare", runtime: dockerVersion,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := server.Get(t)
			h := hollow.New(t, s, test.name, func(node *corev1.Node) {
				node.Annotations[nodestate.AnnotationCRISocket] = "/var/run/dockershim.sock"
				node.Annotations["example.com/registry-password"] = "hunter2hunter2"
			})
			test.set(h)
			observer := &recorder{}
			started := time.Now()
			report, err := newRollout(s, observer).Switch(t.Context(), test.name)
			failed := wantError(t, err, test.outcome, test.text)
			if test.name == "image-pull" {
				message := getNode(t, s, test.name).Annotations[nodestate.AnnotationMessage]
				for _, text := range []string{failed.Hint, message} {
					if !strings.Contains(text, "--image ") || !strings.Contains(text, "--image-pull-secret ") || len(message) > maxMessage {
						t.Errorf("%q does not name the flags", text)
					}
				}
			}
			if h.PodStatus == nil {
				wantEvidence(t, report, test.name, test.text)
			} else if len(report.Evidence) > 0 {
				t.Error("evidence of an agent that never ran")
			}
			if took := time.Since(started); took > time.Minute {
				t.Errorf("took %s", took)
			}
			if got := observer.stages(); got != test.stages {
				t.Errorf("stages %q, want %q", got, test.stages)
			}
			node := getNode(t, s, test.name)
			if node.Spec.Unschedulable != test.cordoned || node.Status.NodeInfo.ContainerRuntimeVersion != test.runtime {
				t.Errorf("cordoned %t, runtime %s", node.Spec.Unschedulable, node.Status.NodeInfo.ContainerRuntimeVersion)
			}
			if got := nodestate.State(node.Annotations[nodestate.AnnotationPhase]); got != test.state {
				t.Errorf("state %q, want %q", got, test.state)
			}
			if !strings.Contains(node.Annotations[nodestate.AnnotationMessage], strings.Split(test.text, ": ")[1%len(strings.Split(test.text, ": "))]) {
				t.Errorf("message %q does not say why", node.Annotations[nodestate.AnnotationMessage])
			}
			if got := node.Annotations[nodestate.AnnotationCRISocket]; got != "/var/run/dockershim.sock" {
				t.Errorf("cri-socket is %q", got)
			}
			if got := slices.Contains(h.Cordons(), true); got != test.everCordoned {
				t.Errorf("ever cordoned: %t", got)
			}
			if test.outcome != OutcomeStuck {
				nothingLeft(t, s, test.name)
			}
		})
	}
}

// wantEvidence checks that a failure comes with all that tells why.
func wantEvidence(t *testing.T, report *Report, node, text string) {
	t.Helper()
	got := map[string]string{}
	for _, file := range report.Evidence {
		got[file.Name] = string(file.Data)
	}
	for name, want := range map[string]string{
		"error.txt": text, "progress.txt": "prepare begins", "node.yaml": "name: " + node, "events.txt": "", "pods.yaml": "",
		"host/run/journal.jsonl": "journal of " + node,
	} {
		if text, ok := got[name]; !ok || !strings.Contains(text, want) || strings.Contains(text, "hunter2") {
			t.Errorf("evidence %s: there %t, %q without %q, or with a secret", name, ok, text, want)
		}
	}
}

// TestCrashesInPrepare has a pod that ran and crashes: the host may be preparing, so that a rollback must not take the run for undone.
func TestCrashesInPrepare(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "crashes")
	h.PodStatus = &corev1.ContainerStatus{RestartCount: 3, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}
	_, err := quickly(newRollout(s, &recorder{})).Switch(t.Context(), "crashes")
	if failed := wantError(t, err, OutcomeFailed, "CrashLoopBackOff"); !failed.Resumable {
		t.Error("it is not resumable")
	}
	if state := getNode(t, s, "crashes").Annotations[nodestate.AnnotationPhase]; state != string(nodestate.StatePreparing) {
		t.Errorf("state %q", state)
	}
	nothingLeft(t, s, "crashes")
	h.PodStatus = nil
	if _, err := newRollout(s, &recorder{}).Rollback(t.Context(), "crashes"); err != nil {
		t.Errorf("the way back: %v", err)
	}
}

// TestPodReplacedInPrepare has a pod that cannot be started again after a power cut, since Docker takes its sandbox for a running one.
func TestPodReplacedInPrepare(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "replaced")
	ctx, first := t.Context(), true
	h.Script[protocol.PhasePrepare] = func(h *hollow.Node, spec protocol.Spec) {
		if !first {
			h.Succeed(spec)
			return
		}
		first = false
		h.Emit(spec, protocol.Event{Step: &protocol.Step{ID: "inspect", Title: "Inspect", State: protocol.StepStarted}})
		pod, err := (&nodejob.Runner{Client: s.Client()}).PhasePod(ctx, spec)
		if err != nil || pod == nil {
			t.Errorf("no pod: %v", err)
			return
		}
		h.SetStatus(ctx, pod, corev1.PodRunning, corev1.ContainerStatus{
			Name: pod.Spec.Containers[0].Name, RestartCount: 2, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
		})
		<-ctx.Done()
	}
	seen := &recorder{}
	if _, err := quickly(newRollout(s, seen)).Switch(ctx, "replaced"); err != nil {
		t.Fatal(err)
	}
	if !seen.said("trying with another pod") {
		t.Error("it was not said that another pod is tried")
	}
	nothingLeft(t, s, "replaced")
}

// TestSilentPodInPrepare has a pod whose container is dead, which its kubelet does not know: another pod finds the run, and the host has gone on.
func TestSilentPodInPrepare(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "silent")
	ctx, first := t.Context(), true
	h.Script[protocol.PhasePrepare] = func(h *hollow.Node, spec protocol.Spec) {
		if first {
			first = false
			<-ctx.Done()
			return
		}
		h.Succeed(spec)
	}
	seen := &recorder{}
	if _, err := quickly(newRollout(s, seen)).Switch(ctx, "silent"); err != nil {
		t.Fatal(err)
	}
	if !seen.said("; looking with another pod") {
		t.Error("it was not said that another pod looks")
	}
	nothingLeft(t, s, "silent")
}

// TestDiesInPrepare has a node that dies in the middle of the preparation: its pod stays Running, and no log comes.
func TestDiesInPrepare(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "dies")
	h.Script[protocol.PhasePrepare] = func(*hollow.Node, protocol.Spec) { <-t.Context().Done() }
	r := newRollout(s, &recorder{})
	r.prepareTimeout = 3 * time.Second
	_, err := r.Switch(t.Context(), "dies")
	if failed := wantError(t, err, OutcomeFailed, "no result came from the node in time: waited 3s"); !failed.Resumable {
		t.Error("it is not resumable")
	}
	if node := getNode(t, s, "dies"); node.Spec.Unschedulable || node.Annotations[nodestate.AnnotationPhase] != string(nodestate.StatePreparing) {
		t.Errorf("cordoned %t, annotations %v", node.Spec.Unschedulable, node.Annotations)
	}
	nothingLeft(t, s, "dies")
}

// TestRemovalIsTriedAgain has the API server drop each first request to delete something: a canary serves on, and a Job may still begin.
func TestRemovalIsTriedAgain(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	hollow.New(t, s, "removed")
	var mu sync.Mutex
	dropped := map[string]bool{}
	r := through(t, s, newRollout(s, &recorder{}), func(request *http.Request) error {
		mu.Lock()
		defer mu.Unlock()
		if path := request.URL.Path; request.Method == http.MethodDelete && strings.Contains(path, "/runtime-") && !dropped[path] {
			dropped[path] = true
			return errors.New("connection reset")
		}
		return nil
	})
	if report, err := r.Switch(t.Context(), "removed"); err != nil || strings.Contains(strings.Join(report.Warnings, ";"), "connection reset") {
		t.Errorf("warnings %q, %v", report.Warnings, err)
	}
	if len(dropped) < 3 {
		t.Errorf("dropped %v", dropped)
	}
	nothingLeft(t, s, "removed")
}
