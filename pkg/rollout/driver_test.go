package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// fakeCluster holds nodes, and the work on them.
type fakeCluster struct {
	mu      sync.Mutex
	nodes   map[string]*corev1.Node
	changed chan struct{}
	// ends are how attempts end, in order; Done where none is left. onMove is called in each attempt.
	ends   map[string][]End
	onMove func(ctx context.Context, node string)

	flying, most int
	told         []string
}

func newFakeCluster(names ...string) (*fakeCluster, []Selected) {
	c := &fakeCluster{nodes: map[string]*corev1.Node{}, changed: make(chan struct{}), ends: map[string][]End{}}
	var selected []Selected
	for _, name := range names {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		c.nodes[name] = node
		selected = append(selected, Selected{Node: node, Todo: true})
	}
	return c, selected
}

func (c *fakeCluster) Node(name string) *corev1.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[name]
}

func (c *fakeCluster) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// change changes a node; nil removes it.
func (c *fakeCluster) change(name string, change func(*corev1.Node)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if node := c.nodes[name].DeepCopy(); change == nil {
		delete(c.nodes, name)
	} else {
		change(node)
		c.nodes[name] = node
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *fakeCluster) Move(ctx context.Context, node string) End {
	c.mu.Lock()
	c.flying++
	c.most = max(c.most, c.flying)
	c.told = append(c.told, "start "+node)
	onMove := c.onMove
	c.mu.Unlock()
	if onMove != nil {
		onMove(ctx, node)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying--
	if ctx.Err() != nil {
		return End{Result: Interrupted}
	}
	if ends := c.ends[node]; len(ends) > 0 {
		c.ends[node] = ends[1:]
		return ends[0]
	}
	return End{Result: Done}
}

func (c *fakeCluster) tell(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = append(c.told, fmt.Sprintf(format, args...))
}

func (c *fakeCluster) Ended(node string, end End) { c.tell("end %s %s", node, end.Result) }
func (c *fakeCluster) Again(node string, _ End)   { c.tell("again %s", node) }
func (c *fakeCluster) Waits(why string)           { c.tell("wait %q", why) }

func (c *fakeCluster) run(t *testing.T, ctx context.Context, selected []Selected, limits Limits) Summary {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	d := &Driver{Limits: limits, Cluster: c, Work: c, Clock: clock.RealClock{}, Shared: alone{}}
	return d.Run(ctx, selected)
}

// alone are the slots of a cluster with one rollout.
type alone struct{}

func (alone) Change(_ context.Context, _ map[string]bool, _ bool, choose func([]Slot) []Slot) error {
	choose(nil)
	return nil
}

func TestDriverGivesABlockedNodeItsTurnLater(t *testing.T) {
	c, selected := newFakeCluster("a", "b", "c")
	c.ends["a"] = []End{{Result: Blocked}, {Result: Blocked}}
	got := c.run(t, t.Context(), selected, Limits{MaxUnavailable: Budget{number: 1}, MaxFailures: 1, DrainAttempts: 2})
	want := "start a, again a, start b, end b done, start c, end c done, start a, end a blocked"
	if told := strings.Join(c.told, ", "); told != want || got.Stopped != "" {
		t.Errorf("%s; stopped %q", told, got.Stopped)
	}
}

// TestDriverPostponesANode: one whose slot was lost has its turn later, and that is no attempt.
func TestDriverPostponesANode(t *testing.T) {
	c, selected := newFakeCluster("a", "b")
	c.ends["a"] = []End{{Result: Postponed}, {Result: Postponed}}
	got := c.run(t, t.Context(), selected, Limits{MaxUnavailable: Budget{number: 1}, MaxFailures: 1, DrainAttempts: 1})
	want := "start a, again a, start b, end b done, start a, again a, start a, end a done"
	if told := strings.Join(c.told, ", "); told != want || got.Stopped != "" {
		t.Errorf("%s; stopped %q", told, got.Stopped)
	}
}

// TestDriverDoesNotWaitForTheMissing: a node that was not Ready before the rollout takes no budget, until it was Ready once.
func TestDriverDoesNotWaitForTheMissing(t *testing.T) {
	ready := func(status corev1.ConditionStatus) func(*corev1.Node) {
		return func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
		}
	}
	c, selected := newFakeCluster("a", "b", "c")
	c.change("a", ready(corev1.ConditionUnknown))
	selected[0].Node, selected[0].Todo = c.Node("a"), false
	c.onMove = func(_ context.Context, node string) {
		if node == "b" {
			c.change("a", ready(corev1.ConditionTrue))
			time.Sleep(100 * time.Millisecond) // until the driver has seen it
			c.change("a", ready(corev1.ConditionFalse))
			time.AfterFunc(200*time.Millisecond, func() { c.change("a", ready(corev1.ConditionTrue)) })
		}
	}
	c.run(t, t.Context(), selected, Limits{MaxUnavailable: Budget{number: 1}, MaxFailures: 1, DrainAttempts: 1})
	want := `start b, end b done, wait "at most 1 node may be unavailable, and 1 already: a (NotReady)", wait "", start c, end c done`
	if told := strings.Join(c.told, ", "); told != want {
		t.Error(told)
	}
}

// TestDriverDoesNotStartTheControlPlaneWithoutOne: a control-plane node that is not Ready always counts.
func TestDriverDoesNotStartTheControlPlaneWithoutOne(t *testing.T) {
	c, selected := newFakeCluster("a", "b")
	for i, name := range []string{"a", "b"} {
		c.change(name, func(n *corev1.Node) {
			n.Labels = map[string]string{"node-role.kubernetes.io/control-plane": ""}
			if name == "a" {
				n.Status.Conditions[0].Status = corev1.ConditionUnknown
			}
		})
		selected[i].Node = c.Node(name)
	}
	selected[0].Todo = false
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	c.run(t, ctx, selected, Limits{MaxUnavailable: Budget{number: 1}, MaxFailures: 1, DrainAttempts: 1})
	if told := strings.Join(c.told, ", "); strings.Contains(told, "start") || !strings.Contains(told, "wait") {
		t.Error(told)
	}
}

// TestDriverWaitsForOthers: a node that somebody has cordoned takes the budget until it is given back.
func TestDriverWaitsForOthers(t *testing.T) {
	c, selected := newFakeCluster("a", "b")
	selected[0].Todo = false
	c.change("a", func(n *corev1.Node) { n.Spec.Unschedulable = true })
	time.AfterFunc(200*time.Millisecond, func() { c.change("a", func(n *corev1.Node) { n.Spec.Unschedulable = false }) })
	c.run(t, t.Context(), selected, Limits{MaxUnavailable: Budget{number: 1}, MaxFailures: 1, DrainAttempts: 1})
	want := `wait "at most 1 node may be unavailable, and 1 already: a (cordoned)", wait "", start b, end b done`
	if told := strings.Join(c.told, ", "); told != want {
		t.Error(told)
	}
}

func TestDriverSkipsNodesThatAreNoLongerThose(t *testing.T) {
	c, selected := newFakeCluster("a", "b", "c", "d")
	c.onMove = func(_ context.Context, node string) {
		if node == "a" { // it vanishes at work; b vanishes and c is made again before they start
			c.change("a", nil)
			c.change("b", nil)
			c.change("c", func(n *corev1.Node) { n.UID = "other" })
		}
	}
	c.ends["a"] = []End{{Result: Stuck}}
	got := c.run(t, t.Context(), selected, Limits{MaxUnavailable: Budget{number: 1}, MaxFailures: 1, DrainAttempts: 1})
	want := "end a skipped, end b skipped, end c skipped, end d done, start a, start d"
	slices.Sort(c.told)
	if told := strings.Join(c.told, ", "); told != want || got.Stopped != "" {
		t.Errorf("%s; stopped %q", told, got.Stopped)
	}
	if reason := got.Members[2].Reason; !strings.Contains(reason, "created again") {
		t.Errorf("reason %q", reason)
	}
}

// TestDriverInterrupted: nothing starts any more, and what is in flight is waited for.
func TestDriverInterrupted(t *testing.T) {
	c, selected := newFakeCluster("a", "b", "c", "d", "e")
	ctx, cancel := context.WithCancelCause(t.Context())
	c.onMove = func(ctx context.Context, node string) {
		if node != "c" && node != "d" {
			return
		}
		if node == "d" {
			cancel(errors.New("interrupted"))
		}
		<-ctx.Done()
		time.Sleep(100 * time.Millisecond) // it undoes its work
	}
	got := c.run(t, ctx, selected, Limits{MaxUnavailable: Budget{number: 5}, MaxFailures: 1, DrainAttempts: 1})
	results := map[string]Result{}
	for _, m := range got.Members {
		results[m.Name] = m.Result
	}
	want := map[string]Result{"a": Done, "b": Done, "c": Interrupted, "d": Interrupted, "e": ""}
	if fmt.Sprint(results) != fmt.Sprint(want) || got.Stopped != "interrupted" || c.flying != 0 {
		t.Errorf("%v, stopped %q, %d in flight", results, got.Stopped, c.flying)
	}
}

// TestDriverUsesItsBudget: with time, as many nodes are in flight as the budget allows, and never more.
func TestDriverUsesItsBudget(t *testing.T) {
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprintf("n%02d", i))
	}
	c, selected := newFakeCluster(names...)
	c.onMove = func(context.Context, string) { time.Sleep(20 * time.Millisecond) }
	got := c.run(t, t.Context(), selected, Limits{MaxUnavailable: Budget{number: 15, percent: true}, MaxFailures: 1, DrainAttempts: 1})
	if c.most != 6 || slices.ContainsFunc(got.Members, func(m Member) bool { return m.Result != Done }) {
		t.Errorf("%d in flight at most, want 6; %+v", c.most, got.Members)
	}
}
