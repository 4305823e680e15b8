package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rollout"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// hollowFleet are hollow nodes of an API server of their own, and somebody who watches them.
type hollowFleet struct {
	*apiserver.Server
	t     *testing.T
	nodes map[string]*hollow.Node

	mu     sync.Mutex
	most   int            // that were unavailable at a time
	left   map[string]int // how often each node was cordoned
	down   map[string]bool
	series []string
}

func newFleet(t *testing.T, names ...string) *hollowFleet {
	t.Helper()
	f := &hollowFleet{Server: apiserver.Own(t, apiserver.Version()), t: t, nodes: map[string]*hollow.Node{}, left: map[string]int{}, down: map[string]bool{}}
	for _, name := range names {
		f.nodes[name] = hollow.New(t, f.Server, name, func(node *corev1.Node) {
			node.Labels["fleet"] = "yes"
			if strings.HasPrefix(name, "cp") {
				node.Labels["node-role.kubernetes.io/control-plane"] = ""
			}
		})
	}
	f.observe()
	return f
}

// observe watches which nodes are unavailable, and knows nothing of the rollout.
func (f *hollowFleet) observe() {
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	f.t.Cleanup(func() { cancel(); <-stopped })
	list, err := f.Client().CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	events, err := f.Client().CoreV1().Nodes().Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		f.t.Fatal(err)
	}
	go func() {
		defer close(stopped)
		defer events.Stop()
		for event := range events.ResultChan() {
			node, ok := event.Object.(*corev1.Node)
			if !ok {
				continue
			}
			f.mu.Lock()
			was := f.down[node.Name]
			if f.down[node.Name] = node.Spec.Unschedulable; node.Spec.Unschedulable && !was {
				f.left[node.Name]++
				f.series = append(f.series, node.Name)
			}
			count := 0
			for _, down := range f.down {
				if down {
					count++
				}
			}
			f.most = max(f.most, count)
			f.mu.Unlock()
		}
	}()
}

// slow has a phase of a node's host begin with something that takes time.
func slow(h *hollow.Node, phase protocol.Phase, wait func()) {
	h.Script[phase] = func(h *hollow.Node, spec protocol.Spec) {
		wait()
		h.Succeed(spec)
	}
}

type called struct {
	code        int
	out, errOut string
	result      v1alpha1.Result
}

// args are those of a command that asks nothing and answers in JSON.
func (f *hollowFleet) args(args ...string) []string {
	f.t.Helper()
	return append(args, "--yes", "--image=registry.example/agent:1", "--soak=0s", "-o", "json", "--kubeconfig="+apiserver.Kubeconfig(f.t, f.Admin()))
}

// call runs a command of the plugin on the fleet. Its answer is read as JSON.
func (f *hollowFleet) call(ctx context.Context, args ...string) called {
	f.t.Helper()
	var out, errOut bytes.Buffer
	args = f.args(args...)
	code := Run(ctx, Invocation{Streams: genericiooptions.IOStreams{In: strings.NewReader(""), Out: &out, ErrOut: &errOut}, Args: args, Version: "test"})
	c := called{code: code, out: out.String(), errOut: errOut.String()}
	if err := json.Unmarshal(out.Bytes(), &c.result); err != nil {
		f.t.Errorf("read answer: %v:\n%s%s", err, &out, &errOut)
	}
	f.t.Logf("exit %d\n%s", code, &errOut)
	for _, match := range regexp.MustCompile(`evidence of why it failed: (kubectl-runtime-\S+)`).FindAllStringSubmatch(c.errOut, -1) {
		if err := os.Remove(match[1]); err != nil {
			f.t.Error(err)
		}
	}
	return c
}

// results are "node: result" of each node in the answer, in its order.
func (c called) results() string {
	var list []string
	for _, node := range c.result.Nodes {
		list = append(list, node.Node+": "+node.Result)
	}
	return strings.Join(list, ", ")
}

func (f *hollowFleet) onContainerd() []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(f.nodes)) {
		if f.nodes[name].IsOn(inventory.RuntimeContainerd) {
			list = append(list, name)
		}
	}
	return list
}

// noneTwice checks that no node was taken out of service more often than once, and that the observer has seen no more than the budget.
func (f *hollowFleet) noneTwice(budget int) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, times := range f.left {
		if times > 1 {
			f.t.Errorf("node %s was taken out of service %d times", name, times)
		}
	}
	if f.most > budget {
		f.t.Errorf("%d nodes were unavailable at a time, %d are allowed", f.most, budget)
	}
}

// TestFleet switches eight nodes within a budget of three, and rolls them back.
func TestFleet(t *testing.T) {
	t.Parallel()
	names := []string{"cp-1", "node-1", "node-2", "node-3", "node-4", "node-5", "node-6", "node-7"}
	f := newFleet(t, names...)
	// After the first four, three are in flight at a time: each waits for the others.
	var together sync.WaitGroup
	together.Add(3)
	for _, name := range []string{"node-5", "node-6", "node-7"} {
		slow(f.nodes[name], protocol.PhaseCutover, func() { together.Done(); together.Wait() })
	}
	r := f.call(t.Context(), "switch", "--all", "--max-unavailable=40%")
	if got := f.onContainerd(); r.code != 0 || !slices.Equal(got, names) {
		t.Fatalf("exit %d, on containerd %q", r.code, got)
	}
	if want := "node-1: done, node-2: done, node-3: done, node-4: done, node-5: done, node-6: done, node-7: done, cp-1: done"; r.results() != want {
		t.Errorf("results %s", r.results())
	}
	if !strings.Contains(r.errOut, "rollout: 8 done\n") {
		t.Error("there is no summary")
	}
	f.noneTwice(3)
	f.mu.Lock()
	if f.most != 3 || len(f.series) != 8 || f.series[0] != "node-1" || f.series[1] != "node-2" || f.series[7] != "cp-1" {
		t.Errorf("%d at a time at most, in this order: %q", f.most, f.series)
	}
	f.most, f.left = 0, map[string]int{}
	f.mu.Unlock()
	leases, err := f.Client().CoordinationV1().Leases("kubectl-runtime").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(leases.Items) > 0 {
		t.Errorf("%d leases are left, %v", len(leases.Items), err)
	}
	if r := f.call(t.Context(), "switch", "--all"); r.code != 0 || r.results() != strings.ReplaceAll("node-1: done, node-2: done, node-3: done, node-4: done, node-5: done, node-6: done, node-7: done, cp-1: done", "done", "skipped") {
		t.Errorf("again: exit %d, %s", r.code, r.results())
	}
	if r := f.call(t.Context(), "rollback", "-l", "fleet=yes", "--max-unavailable=3"); r.code != 0 || len(f.onContainerd()) > 0 {
		t.Errorf("rollback: exit %d, on containerd %q", r.code, f.onContainerd())
	}
	f.noneTwice(3)
}

// TestFleetStopsAtAFailure: a node whose cutover is undone stops new starts; those in flight end well.
func TestFleetStopsAtAFailure(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "node-1", "node-2", "node-3", "node-4", "node-5", "node-6")
	failed := make(chan struct{})
	f.nodes["node-3"].Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
		h.Result(spec, protocol.Result{Outcome: protocol.OutcomeRolledBack, FailedStep: "kubelet-start", Message: "it does not start"})
	}
	slow(f.nodes["node-4"], protocol.PhaseCutover, func() {
		select {
		case <-failed:
		case <-time.After(time.Minute):
			t.Error("node-3 did not fail")
		}
	})
	go func() {
		defer close(failed)
		for t.Context().Err() == nil {
			node, err := f.Client().CoreV1().Nodes().Get(t.Context(), "node-3", metav1.GetOptions{})
			if err == nil && nodestate.Read(node).State == nodestate.StateRolledBack {
				// The claim is the last that a run gives back.
				_, err := f.Client().CoordinationV1().Leases("kubectl-runtime").Get(t.Context(), "node-3", metav1.GetOptions{})
				if apierrors.IsNotFound(err) {
					return
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	r := f.call(t.Context(), "switch", "--all", "--max-unavailable=2")
	if want := "node-1: done, node-2: done, node-3: failed, node-4: done, node-5: not-begun, node-6: not-begun"; r.code != cli.ExitRolledBack || r.results() != want {
		t.Errorf("exit %d, %s", r.code, r.results())
	}
	for _, want := range []string{"not started: node-5, node-6\n", "rollout: 3 done, 1 rolled back, 2 not started: 1 node failed, and --max-failures is 1\n", "`kubectl runtime switch --all=true"} {
		if !strings.Contains(r.errOut, want) {
			t.Errorf("%q is not in:\n%s", want, r.errOut)
		}
	}
	f.noneTwice(2)
	// With another limit, the rest is switched, and the node that fails fails again.
	f.mu.Lock()
	f.left = map[string]int{}
	f.mu.Unlock()
	r = f.call(t.Context(), "switch", "--all", "--max-unavailable=2", "--max-failures=2")
	if want := "node-1: skipped, node-2: skipped, node-3: failed, node-4: skipped, node-5: done, node-6: done"; r.code != cli.ExitRolledBack || r.results() != want {
		t.Errorf("exit %d, %s", r.code, r.results())
	}
	f.noneTwice(2)
}

// TestFleetBlockedDrain: a node that a PodDisruptionBudget keeps from being drained gives way to the others, is tried again and then skipped.
func TestFleetBlockedDrain(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "node-1", "node-2", "node-3")
	switchPod(t, f.Server, "node-1", "kept", func(p *corev1.Pod) { p.Labels = map[string]string{"app": "kept"} })
	patch := `{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}` // a budget protects no other pod
	if _, err := f.Client().CoreV1().Pods("default").Patch(t.Context(), "kept", types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	f.PutBudget(t, &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kept"},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MaxUnavailable: ptr.To(intstr.FromInt32(1)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "kept"}},
		},
		Status: policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 1, CurrentHealthy: 1, DesiredHealthy: 1, ExpectedPods: 2},
	})
	r := f.call(t.Context(), "switch", "--all", "--timeout=3s")
	if want := "node-1: blocked, node-2: done, node-3: done"; r.code != cli.ExitTimeout || r.results() != want {
		t.Errorf("exit %d, %s", r.code, r.results())
	}
	for _, want := range []string{"node-1 drain     the node serves, and is tried again after the others", "rollout: 2 done, 1 blocked by PodDisruptionBudgets\n", "error: node node-1: drain: drain node node-1: not finished after 3s"} {
		if !strings.Contains(r.errOut, want) {
			t.Errorf("%q is not in:\n%s", want, r.errOut)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if want := []string{"node-1", "node-2", "node-3", "node-1"}; !slices.Equal(f.series, want) || f.most > 1 {
		t.Errorf("%d at a time, in this order: %q", f.most, f.series)
	}
}

// TestFleetInterrupted: Ctrl-C ends or undoes what is in flight, and nothing else starts. The same command resumes.
func TestFleetInterrupted(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "node-1", "node-2", "node-3", "node-4", "node-5")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var once sync.Once
	both := make(chan struct{}, 2)
	for _, name := range []string{"node-3", "node-4"} {
		slow(f.nodes[name], protocol.PhasePrepare, func() {
			both <- struct{}{}
			if len(both) == 2 {
				once.Do(func() { cancel(&cli.SignalError{Signal: interrupt{}}) })
			}
			time.Sleep(5 * time.Second)
		})
	}
	r := f.call(ctx, "switch", "--all", "--max-unavailable=5")
	if want := "node-1: done, node-2: done, node-3: failed, node-4: failed, node-5: not-begun"; r.code != 130 || r.results() != want {
		t.Errorf("exit %d, %s", r.code, r.results())
	}
	if !strings.Contains(r.errOut, "rollout: 2 done, 2 interrupted, 1 not started: interrupted\n") {
		t.Error("the summary is not right")
	}
	r = f.call(t.Context(), "switch", "--all", "--max-unavailable=5")
	if r.code != 0 || len(f.onContainerd()) != 5 {
		t.Errorf("again: exit %d, on containerd %q", r.code, f.onContainerd())
	}
	f.noneTwice(5)
}

type interrupt struct{}

func (interrupt) Signal()        {}
func (interrupt) String() string { return fmt.Sprint("interrupt") }

// TestFleetsShareABudget: two rollouts whose nodes overlap, and one of a single node, keep to one budget.
func TestFleetsShareABudget(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "node-1", "node-2", "node-3", "node-4", "node-5")
	var all sync.WaitGroup
	for _, args := range [][]string{
		{"switch", "-l", "kubernetes.io/hostname in (node-1,node-2,node-3)", "--wait"}, {"switch", "-l", "kubernetes.io/hostname in (node-2,node-3,node-4)", "--wait"},
		{"switch", "node-5"},
	} {
		all.Go(func() {
			if r := f.call(t.Context(), args...); r.code != 0 {
				t.Errorf("%q: exit %d", args, r.code)
			}
		})
	}
	all.Wait()
	if got := f.onContainerd(); len(got) != 5 {
		t.Errorf("on containerd: %q", got)
	}
	f.noneTwice(1)
	slots, err := f.Client().CoreV1().ConfigMaps("kubectl-runtime").Get(t.Context(), rollout.SlotsName, metav1.GetOptions{})
	if err != nil || len(slots.Data) > 0 {
		t.Errorf("slots are left: %v, %v", slots.Data, err)
	}
}

// TestFleetDriverKilled kills the driver while nodes are in flight: its slots are of a dead owner then. The same command takes the nodes up and ends the
// rollout within the budget; no node is taken out of service twice.
func TestFleetDriverKilled(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "node-1", "node-2", "node-3", "node-4", "node-5", "node-6")
	var dead atomic.Bool
	killed := make(chan struct{})
	ctx, kill := context.WithCancel(context.Background())
	defer kill()
	for _, name := range []string{"node-3", "node-4"} {
		slow(f.nodes[name], protocol.PhaseCutover, func() {
			if dead.CompareAndSwap(false, true) {
				kill()
				close(killed)
			}
			time.Sleep(3 * time.Second)
		})
	}
	factory := cli.NewFactory(genericiooptions.NewTestIOStreamsDiscard(), "test")
	factory.Flags.WrapConfigFn = func(config *rest.Config) *rest.Config {
		return apiserver.Transport(config, func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				if dead.Load() {
					return nil, errors.New("this process is dead")
				}
				return next.RoundTrip(r)
			})
		})
	}
	first := NewRootCommand(factory)
	first.SetArgs(f.args("switch", "--all", "--max-unavailable=2"))
	ended := make(chan error, 1)
	go func() { ended <- first.ExecuteContext(ctx) }()
	select {
	case <-killed:
	case err := <-ended:
		t.Fatalf("it ended: %v", err)
	}
	r := f.call(t.Context(), "switch", "--all", "--max-unavailable=2", "--wait")
	if got := f.onContainerd(); r.code != 0 || len(got) != 6 {
		t.Errorf("exit %d, on containerd %q", r.code, got)
	}
	f.noneTwice(2)
	<-ended
}
