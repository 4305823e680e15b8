package nodeswitch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// freezer stops a process right before one of its writes to a Node, with all requests after it, until it is thawed.
type freezer struct {
	write  int // which one, from 1
	frozen chan struct{}
	thawed chan struct{}

	mu     sync.Mutex
	writes int
}

func (f *freezer) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		f.mu.Lock()
		if r.Method == http.MethodPatch && strings.HasPrefix(r.URL.Path, "/api/v1/nodes/") {
			if f.writes++; f.writes == f.write {
				close(f.frozen)
			}
		}
		stopped := f.writes >= f.write
		f.mu.Unlock()
		if stopped {
			select {
			case <-f.thawed:
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		}
		return next.RoundTrip(r)
	})
}

// written is what this program has written on a Node.
func written(node *corev1.Node) string {
	return fmt.Sprint(node.Spec.Unschedulable, node.Annotations)
}

// TestFrozenWriterChangesNothing freezes a run right before each of its writes to the Node, has another run take the node over and end its work, and
// thaws the first one: the node stays as the other run has left it.
func TestFrozenWriterChangesNothing(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	for _, test := range []struct {
		name   string
		back   bool
		writes int
	}{{"frozen-switch", false, 6}, {"frozen-rollback", true, 3}} {
		for write := 1; write <= test.writes; write++ {
			t.Run(fmt.Sprintf("%s-%d", test.name, write), func(t *testing.T) {
				t.Parallel()
				name := fmt.Sprintf("%s-%d", test.name, write)
				create, move := hollow.New, (*Switcher).Switch
				var change []func(*corev1.Node)
				if test.back {
					create, move, change = newSwitched, (*Switcher).Rollback, append(change, left(nodestate.StateDone, false))
				}
				create(t, s, name, change...)
				f := &freezer{write: write, frozen: make(chan struct{}), thawed: make(chan struct{})}
				var once sync.Once
				thaw := func() { once.Do(func() { close(f.thawed) }) }
				defer thaw()
				first := newRollout(s, &recorder{})
				withConfig(t, first, apiserver.Transport(s.Admin(), f.wrap))
				ended := make(chan error, 1)
				go func() { _, err := move(first, t.Context(), name); ended <- err }()
				select {
				case <-f.frozen:
				case err := <-ended:
					t.Fatalf("there are only %d writes; it ended with %v", f.writes, err)
				case <-time.After(2 * time.Minute):
					t.Fatal("it is never frozen")
				}
				second, later := newRollout(s, &recorder{}), &sleepingClock{}
				second.clock, second.claims.Clock, second.runner.Clock = later, later, later
				if _, _, _, err := second.claims.By(t.Context(), name); err != nil { // the claim is seen, and two minutes later it is as it was
					t.Fatal(err)
				}
				later.slept.Add(int64(2 * time.Minute))
				if _, err := move(second, t.Context(), name); err != nil {
					t.Fatal(err)
				}
				want := written(getNode(t, s, name))
				thaw()
				if err := <-ended; !errors.Is(err, claim.ErrLost) {
					t.Errorf("the first run ended with %v", err)
				}
				if got := written(getNode(t, s, name)); got != want {
					t.Errorf("the node was\n%s\nand is\n%s", want, got)
				}
			})
		}
	}
}

// TestEditedEpoch: a run whose epoch somebody edits or removes by hand still has its claim, and continues.
func TestEditedEpoch(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	const name = "edited-epoch"
	hollow.New(t, s, name)
	edits := map[Stage]any{StagePrepare: nil, StageDrain: "someone", StageVerify: nil}
	r := newRollout(s, &recorder{onStage: func(stage Stage) {
		value, ok := edits[stage]
		if !ok {
			return
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{nodestate.AnnotationEpoch: value}}})
		if err == nil {
			_, err = s.Client().CoreV1().Nodes().Patch(context.Background(), name, types.MergePatchType, patch, metav1.PatchOptions{})
		}
		if err != nil {
			t.Error(err)
		}
	}})
	if _, err := r.Switch(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if node := getNode(t, s, name); node.Annotations[nodestate.AnnotationPhase] != string(nodestate.StateDone) || node.Annotations[nodestate.AnnotationEpoch] == "" {
		t.Errorf("annotations %v", node.Annotations)
	}
}
