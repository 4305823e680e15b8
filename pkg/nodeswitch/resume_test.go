package nodeswitch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// TestResumeAnew resumes runs that must not be resumed: pods that came to the node since would be stopped without a drain.
func TestResumeAnew(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		change   func(*corev1.Node)
		why      string
		cordoned bool // in the end
	}{
		{name: "again-given-back", change: func(node *corev1.Node) {
			left(nodestate.StateCutover, true)(node)
			node.Spec.Unschedulable = false
		}, why: "nothing is left of the cutover of run r1"},
		{name: "again-cordoned", change: left(nodestate.StateCutover, true), why: "nothing is left of the cutover of run r1"},
		{name: "again-cordoned-before", change: func(node *corev1.Node) {
			left(nodestate.StateCutover, true)(node)
			node.Annotations[nodestate.AnnotationWasUnschedulable] = "true"
		}, why: "nothing is left of the cutover of run r1", cordoned: true},
		{name: "again-old", change: func(node *corev1.Node) {
			left(nodestate.StatePrepared, false)(node)
			node.Annotations[nodestate.AnnotationRun] = nodestate.NewRun(time.Now().Add(-2 * time.Hour))
			node.Annotations[nodestate.AnnotationAgentImage] = agentImage
		}, why: "is older than 1h0m0s"},
		{name: "again-other-image", change: func(node *corev1.Node) {
			left(nodestate.StateDraining, true)(node)
			node.Annotations[nodestate.AnnotationRun] = nodestate.NewRun(time.Now())
			node.Annotations[nodestate.AnnotationAgentImage] = "registry.example/agent:0"
		}, why: "another image of the agent, registry.example/agent:0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := server.Get(t)
			hollow.New(t, s, test.name, test.change)
			before := getNode(t, s, test.name).Annotations[nodestate.AnnotationRun]
			createPod(t, s, test.name, test.name)
			observer := &recorder{}
			findings, err := newRollout(s, observer).Preflight().Switch(t.Context(), []corev1.Node{*getNode(t, s, test.name)}, false)
			if err != nil || findings[0].Verdict != preflight.Go || len(findings[0].Evict) != 1 {
				t.Fatalf("preflight: %+v, %v", findings, err)
			}
			report, err := newRollout(s, observer).Switch(t.Context(), test.name)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := observer.stages(), "claim prepare drain cutover verify uncordon"; got != want || report.Resumed || report.Run == before {
				t.Errorf("stages %q, want %q; resumed %t, run %s", got, want, report.Resumed, report.Run)
			}
			if !observer.said(test.why) {
				t.Errorf("it was not said that %q", test.why)
			}
			if _, err := s.Client().CoreV1().Pods("default").Get(t.Context(), test.name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("the pod was not evicted: %v", err)
			}
			if node := getNode(t, s, test.name); node.Spec.Unschedulable != test.cordoned {
				t.Errorf("cordoned %t", node.Spec.Unschedulable)
			}
			nothingLeft(t, s, test.name)
		})
	}
}

// TestHostIsNotAsked ends a run before its host was asked for the cutover, by a Job or by the pod that waits: no host goes on by itself then,
// and the next run does.
func TestHostIsNotAsked(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	for _, test := range []struct {
		name   string
		waits  bool
		state  string
		drains bool // the next run
	}{
		{"not-asked", false, "the host was not asked for the cutover, as far as is known; the node is Ready, cordoned", true},
		{"not-asked-waits", true, "if the host was asked for the cutover, it continues by itself; the node is Ready, cordoned", false},
	} {
		hollow.New(t, s, test.name)
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		observer := &recorder{}
		var cutover atomic.Bool
		observer.onStage = func(stage Stage) { cutover.Store(stage == StageCutover) }
		r := through(t, s, newRollout(s, observer), func(request *http.Request) error {
			switch {
			case isWaitingJob(request) && !test.waits:
				return errors.New("connection refused")
			case cutover.Load() && (request.Method == http.MethodPost && strings.HasSuffix(request.URL.Path, "/jobs") || strings.HasSuffix(request.URL.Path, "/exec")):
				cancel(errors.New("interrupted: test"))
				return errors.New("connection refused")
			}
			return nil
		})
		if !test.waits {
			r.parkTimeout = time.Second
		}
		_, err := r.Switch(ctx, test.name)
		_ = wantError(t, err, OutcomeInterrupted, test.state)
		observer = &recorder{}
		if _, err := newRollout(s, observer).Switch(t.Context(), test.name); err != nil {
			t.Fatal(err)
		}
		if node := getNode(t, s, test.name); node.Spec.Unschedulable || strings.Contains(observer.stages(), "drain") != test.drains {
			t.Errorf("%s: the next run: cordoned %t, stages %s", test.name, node.Spec.Unschedulable, observer.stages())
		}
		nothingLeft(t, s, test.name)
	}
}

// isWaitingJob reports whether a request creates the Job whose pod waits for the cutover.
func isWaitingJob(request *http.Request) bool {
	if request.Method != http.MethodPost || !strings.HasSuffix(request.URL.Path, "/jobs") || request.GetBody == nil {
		return false
	}
	body, err := request.GetBody()
	if err != nil {
		return false
	}
	data, err := io.ReadAll(body)
	return err == nil && bytes.Contains(data, []byte("--wait"))
}
