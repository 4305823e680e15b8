package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

var server apiserver.Shared

func TestMain(m *testing.M) { os.Exit(server.Main(m)) }

// movedClock is a clock that can be moved.
type movedClock struct {
	clock.RealClock
	by atomic.Int64
}

func (c *movedClock) Now() time.Time { return c.RealClock.Now().Add(time.Duration(c.by.Load())) }

// unseen is a Cluster that knows no node, so that each is asked for.
type unseen struct{}

func (unseen) Node(string) *corev1.Node { return nil }
func (unseen) Changed() <-chan struct{} { return nil }

func newSlots(s *apiserver.Server, c clock.WithTicker, holder string) *Slots {
	return &Slots{Client: s.Client(), Clock: c, Claims: &claim.Claims{Client: s.Client(), Clock: c, Holder: holder}, Cluster: unseen{}, EnsureNamespace: func(ctx context.Context) error {
		_, err := s.Client().CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: nodejob.Namespace}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	}}
}

// TestSlotsAreTakenByOne: many processes that see a free slot at the same moment take it one after the other.
func TestSlotsAreTakenByOne(t *testing.T) {
	s := server.Get(t)
	var nodes []*corev1.Node
	for i := range 6 {
		nodes = append(nodes, apiserver.Node(fmt.Sprintf("race-%d", i), "docker://20.10.24", "v1.23.17"))
	}
	s.CreateNodes(t, nodes...)
	var flying, most, turns atomic.Int64
	var all sync.WaitGroup
	for i, node := range nodes {
		all.Go(func() {
			slots := newSlots(s, clock.RealClock{}, fmt.Sprintf("p%d@here/%d", i, i))
			for done := 0; done < 3 && t.Context().Err() == nil; {
				took := false
				err := slots.Change(t.Context(), nil, true, func(others []Slot) []Slot {
					if took = len(others) == 0; !took {
						return nil
					}
					return []Slot{{Node: node.Name}}
				})
				if err != nil {
					if !strings.Contains(err.Error(), "at the same time") {
						t.Error(err)
					}
					continue
				}
				if !took {
					continue
				}
				now := flying.Add(1)
				for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
				}
				turns.Add(1)
				done++
				flying.Add(-1)
				for slots.Change(t.Context(), map[string]bool{node.Name: false}, false, func([]Slot) []Slot { return nil }) != nil && t.Context().Err() == nil {
				}
			}
		})
	}
	all.Wait()
	if most.Load() != 1 || turns.Load() != 18 {
		t.Errorf("%d had it at a time, %d turns", most.Load(), turns.Load())
	}
}

// putSlots makes the slots to be those of data.
func putSlots(t *testing.T, s *apiserver.Server, data map[string]string) {
	t.Helper()
	api := s.Client().CoreV1().ConfigMaps(nodejob.Namespace)
	if err := api.Delete(t.Context(), SlotsName, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if _, err := api.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: SlotsName}, Data: data}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// slotNames are the nodes that have a slot.
func slotNames(t *testing.T, s *apiserver.Server) string {
	t.Helper()
	now, err := s.Client().CoreV1().ConfigMaps(nodejob.Namespace).Get(t.Context(), SlotsName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(slices.Sorted(maps.Keys(now.Data)), " ")
}

// TestSlotsOfOthers: which slots count, which are removed, and what cannot be read.
func TestSlotsOfOthers(t *testing.T) {
	s := server.Get(t)
	cordoned := func(n *corev1.Node) { n.Spec.Unschedulable = true }
	node := func(name string, change ...func(*corev1.Node)) *corev1.Node {
		return apiserver.Node(name, "docker://20.10.24", "v1.23.17", change...)
	}
	s.CreateNodes(t, node("dead-serves"), node("dead-out", cordoned), node("asleep"), node("live"), node("mine"), node("left-out", cordoned), node("left-serves"))
	c := &movedClock{}
	slots := newSlots(s, c, "me@here/1")
	if err := slots.EnsureNamespace(t.Context()); err != nil {
		t.Fatal(err)
	}
	entry := `{"holder":"bob@desk\u0007/1","since":"2026-01-01T00:00:00Z"}`
	left := strings.Replace(entry, "{", `{"left":true,`, 1)
	putSlots(t, s, map[string]string{
		"gone": entry, "dead-serves": entry, "dead-out": entry, "asleep": entry, "live": entry, "left-out": left, "left-serves": left,
		"garbage": "{", "nobody": `{}`, "Not_a_node": entry, "large": `{"holder":"` + strings.Repeat("x", 2000) + `"}`,
	})
	// One claim is of a holder that sleeps for two minutes, the other is renewed meanwhile.
	bob := &claim.Claims{Client: s.Client(), Clock: c, Holder: "bob@desk\a/1"}
	claims := map[string]*claim.Claim{}
	for _, name := range []string{"asleep", "live"} {
		held, _, err := bob.Take(t.Context(), name, "", claim.Switch, func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		claims[name] = held
		t.Cleanup(func() { _ = held.Release(context.Background()) })
	}
	seen := func(take ...Slot) string {
		t.Helper()
		var list []string
		err := slots.Change(t.Context(), nil, true, func(others []Slot) []Slot {
			list = nil
			for _, slot := range others {
				idle := ""
				if slot.idle {
					idle = "~"
				}
				if list = append(list, slot.Node+idle); slot.Person() != `bob@desk\u0007` { // a control character is not passed on
					t.Errorf("%s is of %q", slot.Node, slot.Person())
				}
			}
			return take
		})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(list, " ")
	}
	// Nobody is dead at first sight, but somebody may have said that a node was left.
	if got, want := seen(Slot{Node: "mine"}), "asleep dead-out dead-serves gone left-out~ live"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	c.by.Store(int64(2 * time.Minute))
	if err := claims["live"].Prove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := seen(), "dead-out~ left-out~ live"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := slotNames(t, s), "dead-out left-out live mine"; got != want {
		t.Errorf("slots %s, want %s", got, want)
	}
	if err := claims["asleep"].Keep(t.Context()); !errors.Is(err, claim.ErrLost) {
		t.Errorf("who slept may go on: %v", err)
	}
	for _, name := range []string{"gone", "dead-serves", "asleep"} {
		if lease, err := claim.ReadLease(t.Context(), s.Client(), name); lease != nil || err != nil {
			t.Errorf("the claim on %s is left: %v, %v", name, lease, err)
		}
	}
}

// TestSlotOfASleeper: who sleeps between the slot and the claim finds out that the slot was given to others.
func TestSlotOfASleeper(t *testing.T) {
	s := server.Get(t)
	c := &movedClock{}
	slots := newSlots(s, c, "me@here/2")
	if err := slots.EnsureNamespace(t.Context()); err != nil {
		t.Fatal(err)
	}
	take := func() {
		t.Helper()
		putSlots(t, s, nil)
		if err := slots.Change(t.Context(), nil, true, func([]Slot) []Slot { return []Slot{{Node: "sleepy"}} }); err != nil {
			t.Fatal(err)
		}
	}
	take()
	c.by.Add(int64(claim.ExpiryProof))
	if err := slots.Holds(t.Context(), "sleepy"); err != nil {
		t.Errorf("it has the slot: %v", err)
	}
	putSlots(t, s, map[string]string{"sleepy": `{"holder":"bob@desk/1"}`})
	if err := slots.Holds(t.Context(), "sleepy"); !errors.Is(err, ErrNotHeld) {
		t.Errorf("another has the slot: %v", err)
	}
	take()
	putSlots(t, s, nil) // nobody does that so soon
	if err := slots.Holds(t.Context(), "sleepy"); err != nil {
		t.Errorf("it asks although it has just taken the slot: %v", err)
	}
	if err := slots.Holds(t.Context(), "never-taken"); !errors.Is(err, ErrNotHeld) {
		t.Errorf("it never had the slot: %v", err)
	}
}

// TestRemovedSlotFences: the holder of a slot that another has removed sleeps right before it cordons the node, and changes nothing when it wakes.
func TestRemovedSlotFences(t *testing.T) {
	s := server.Get(t)
	for name, write := range map[string]func(*nodestate.Editor) error{
		"fenced-cordon": func(e *nodestate.Editor) error { _, err := e.Cordon(context.Background(), nil); return err },
		"fenced-phase": func(e *nodestate.Editor) error {
			_, err := e.Annotate(context.Background(), nodestate.At(nodestate.StateCutover, ""))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			s.CreateNodes(t, apiserver.Node(name, "docker://20.10.24", "v1.23.17"))
			c := &movedClock{}
			slots := newSlots(s, c, "me@here/3")
			if err := slots.EnsureNamespace(t.Context()); err != nil {
				t.Fatal(err)
			}
			putSlots(t, s, map[string]string{name: `{"holder":"bob@desk/1"}`})
			bob := &claim.Claims{Client: s.Client(), Clock: clock.RealClock{}, Holder: "bob@desk/1"}
			held, _, err := bob.Take(t.Context(), name, "", claim.Switch, func(string) {})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = held.Release(context.Background()) }()
			asleep := func() { // two minutes pass
				look := func() {
					if err := slots.Change(t.Context(), nil, true, func([]Slot) []Slot { return nil }); err != nil {
						t.Error(err)
					}
				}
				look()
				c.by.Add(int64(2 * time.Minute))
				look()
				if left := slotNames(t, s); left != "" {
					t.Errorf("slots %s", left)
				}
			}
			node, err := s.Client().CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			config := apiserver.Transport(s.Admin(), func(next http.RoundTripper) http.RoundTripper {
				return roundTripper(func(r *http.Request) (*http.Response, error) {
					if r.Method == http.MethodPatch && asleep != nil {
						sleep := asleep
						asleep = nil
						sleep()
					}
					return next.RoundTrip(r)
				})
			})
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			editor := &nodestate.Editor{
				Client: s.Client(), Node: name, Claim: held, Seen: func(context.Context) (*corev1.Node, error) { return node, nil },
				Retry: func(_ context.Context, request func() error) (err error) {
					for err = request(); apierrors.IsConflict(err); err = request() {
					}
					return err
				},
			}
			editor.Took(node)
			if node, err = editor.Fence(t.Context()); err != nil { // its first write
				t.Fatal(err)
			}
			editor.Client = client
			if err := write(editor); !errors.Is(err, claim.ErrLost) {
				t.Errorf("the sleeper's write: %v", err)
			}
			now, err := s.Client().CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
			if err != nil || now.Spec.Unschedulable || now.Annotations[nodestate.AnnotationPhase] != "" {
				t.Errorf("cordoned %t, annotations %v, %v", now.Spec.Unschedulable, now.Annotations, err)
			}
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
