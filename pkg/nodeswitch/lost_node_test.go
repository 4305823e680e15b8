package nodeswitch

import (
	"errors"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// quick is a clock that runs faster than time does.
type quick struct {
	clock.RealClock
	start  time.Time
	factor int
}

func (q quick) Now() time.Time { return q.start.Add(time.Since(q.start) * time.Duration(q.factor)) }

func (q quick) NewTimer(d time.Duration) clock.Timer {
	return q.RealClock.NewTimer(d / time.Duration(q.factor))
}

func (q quick) NewTicker(d time.Duration) clock.Ticker {
	return q.RealClock.NewTicker(d / time.Duration(q.factor))
}

// quickly makes seconds of all that a Switcher does last tenths of a second, but for the times of contexts.
func quickly(r *Switcher) *Switcher {
	r.clock = quick{start: time.Now(), factor: 10}
	r.runner.Clock, r.claims.Clock = r.clock, r.clock
	return r
}

// TestNodeIsGoneOnceTheContainerRuns takes node and kubelet away before they could report the cutover's container: the API shows
// the pod Pending for longer than a pod may take to start, while the host cuts over.
func TestNodeIsGoneOnceTheContainerRuns(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "gone")
	h.Silent = func(h *hollow.Node) {
		time.Sleep(7 * time.Second) // 70 s for the plugin
		if node := getNode(t, s, "gone"); !node.Spec.Unschedulable || node.Annotations[nodestate.AnnotationPhase] != string(nodestate.StateCutover) {
			t.Errorf("given up while the host is at work: cordoned %t, %v", node.Spec.Unschedulable, node.Annotations)
		}
		h.SwitchTo(containerdVersion)
	}
	observer := &recorder{}
	r := quickly(through(t, s, newRollout(s, observer), func(request *http.Request) error {
		if isWaitingJob(request) {
			return errors.New("connection refused")
		}
		return nil
	}))
	r.parkTimeout = time.Second
	if _, err := r.Switch(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	if !observer.said("waiting for the node's kubelet to confirm that the host has not begun") {
		t.Error("it was not said that the plugin waits")
	}
	nothingLeft(t, s, "gone")
}

// TestSoakFails has a node that is not Ready any more once it is given back: it is not done.
func TestSoakFails(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "soaked")
	observer := &recorder{onStage: func(stage Stage) {
		if stage == StageSoak {
			h.UpdateNode(func(node *corev1.Node) { node.Status.Conditions[0].Status = corev1.ConditionUnknown })
		}
	}}
	soaking := func(o *Options) { o.Soak = 30 * time.Second }
	_, err := newRollout(s, observer, soaking).Switch(t.Context(), "soaked")
	_ = wantError(t, err, OutcomeStuck, "no longer Ready")
	node := getNode(t, s, "soaked")
	if !node.Spec.Unschedulable || node.Annotations[nodestate.AnnotationPhase] != string(nodestate.StateVerifying) || node.Annotations[nodestate.AnnotationMessage] == "" {
		t.Errorf("cordoned %t, annotations %v", node.Spec.Unschedulable, node.Annotations)
	}
	h.UpdateNode(func(node *corev1.Node) { node.Status.Conditions[0].Status = corev1.ConditionTrue })
	if _, err := newRollout(s, &recorder{}).Switch(t.Context(), "soaked"); err != nil {
		t.Fatal(err)
	}
	node = getNode(t, s, "soaked")
	if node.Spec.Unschedulable || node.Annotations[nodestate.AnnotationPhase] != string(nodestate.StateDone) {
		t.Errorf("after a second run: cordoned %t, annotations %v", node.Spec.Unschedulable, node.Annotations)
	}
	if got := h.Phases(); len(got) == 0 || got[len(got)-1] == protocol.PhaseRollback {
		t.Errorf("phases %v", got)
	}
}
