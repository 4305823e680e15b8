package nodejob

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	testclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestSilence plays a pod, tick by tick of five seconds for ten minutes. It is replaced when it has said nothing new for too
// long, and in Unattended only while its kubelet is there.
func TestSilence(t *testing.T) {
	const (
		tick  = 5 * time.Second
		ticks = 120
	)
	waiting := func(reason string, restarts int32) corev1.PodStatus {
		return corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{
			Name: agentName, RestartCount: restarts, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}},
		}}}
	}
	created, failing := waiting("", 1), waiting("CreateContainerError", 0)
	running := corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
		Name: agentName, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}}
	ended := corev1.PodStatus{Phase: corev1.PodSucceeded, ContainerStatuses: []corev1.ContainerStatus{{
		Name: agentName, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}},
	}}}
	always := func(i int) bool { return i%2 == 0 }
	for _, test := range []struct {
		name       string
		unattended bool
		// alive tells for a tick whether the pod gives a sign of life, repeats whether its log is read from the beginning.
		alive, repeats func(tick int) bool
		// renews tells whether the kubelet renews its Lease.
		renews func(tick int) bool
		// runtime is what the node reports.
		runtime func(tick int) string
		// status is the pod's, by default that of one that runs.
		status corev1.PodStatus
		want   []int // the ticks in which the pod is replaced
		notes  int
	}{
		{name: "silent", want: []int{12, 36, 84}, notes: 3},
		{name: "alive", alive: func(i int) bool { return i%3 == 0 }},
		{name: "alive for a minute", alive: func(i int) bool { return i%3 == 0 && i <= 12 }, want: []int{24, 48, 96}, notes: 3},
		{name: "an old log again and again", alive: func(i int) bool { return i == 0 }, repeats: func(i int) bool { return i > 0 }, want: []int{12, 36, 84}, notes: 3},
		{name: "the second pod is alive", alive: func(i int) bool { return i > 12 && i%3 == 0 }, want: []int{12}, notes: 2},
		{name: "unattended, the kubelet is there", unattended: true, renews: always, alive: func(i int) bool { return i > 20 && i%3 == 0 }, want: []int{16}, notes: 2},
		{name: "unattended, the kubelet is stopped", unattended: true, renews: func(i int) bool { return i == 0 }},
		{
			name: "unattended, the kubelet comes back on the other runtime", unattended: true, alive: func(i int) bool { return i > 60 && i%3 == 0 },
			renews: func(i int) bool { return (i == 0 || i > 40) && i%2 == 0 },
			runtime: func(i int) string {
				return map[bool]string{true: "containerd://2.0.0", false: "docker://20.10.24"}[i > 40]
			},
			want: []int{46}, notes: 2,
		},
		{name: "created before a power cut", status: created, want: []int{12, 36, 84}, notes: 3},
		{name: "unattended, created before a power cut", unattended: true, renews: always, status: created, alive: func(i int) bool { return i > 20 && i%3 == 0 }, want: []int{16}, notes: 2},
		{name: "unattended, created before a power cut, the kubelet is stopped", unattended: true, renews: func(i int) bool { return i == 0 }, status: created},
		{name: "unattended, cannot be started", unattended: true, renews: always, status: failing, alive: func(i int) bool { return i > 20 && i%3 == 0 }, want: []int{16}, notes: 2},
		{name: "has ended", status: ended},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := testSpec()
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: spec.Node}, Status: corev1.NodeStatus{
				NodeInfo:   corev1.NodeSystemInfo{BootID: "b", ContainerRuntimeVersion: "docker://20.10.24"},
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			}}
			lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: spec.Node, Namespace: corev1.NamespaceNodeLease}}
			client := fake.NewClientset(node, lease)
			fakeClock := testclock.NewFakeClock(time.Date(2024, 1, 31, 12, 0, 0, 0, time.UTC))
			var notes []string
			mode := InService
			if test.unattended {
				mode = Unattended
			}
			w := (&Runner{Client: client, Clock: fakeClock}).NewFollower(func(protocol.Event) {}, func(note string) { notes = append(notes, note) }).
				newFollowed(spec.Phase, spec, mode, true)
			say := func(at time.Time) {
				t.Helper()
				line, err := protocol.StillAlive(spec, at).Encode()
				if err == nil {
					_, err = w.take(line)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			var replaced []int
			for i := range ticks {
				pods, err := client.CoreV1().Pods(Namespace).List(t.Context(), metav1.ListOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if len(pods.Items) == 0 { // the Job controller
					if i > 0 {
						replaced = append(replaced, i-1)
					}
					pod := &corev1.Pod{
						ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: fmt.Sprintf("pod-%d", i), Labels: jobLabels(spec)},
						Status:     running,
					}
					if test.status.Phase != "" {
						pod.Status = test.status
					}
					if err := client.Tracker().Add(pod); err != nil {
						t.Fatal(err)
					}
				}
				if test.renews != nil && test.renews(i) {
					lease.Spec.RenewTime = ptr.To(metav1.NewMicroTime(fakeClock.Now().Add(-time.Hour))) // the node's clock is an hour late
					if err := client.Tracker().Update(coordinationv1.SchemeGroupVersion.WithResource("leases"), lease.DeepCopy(), lease.Namespace); err != nil {
						t.Fatal(err)
					}
				}
				if test.runtime != nil {
					node.Status.NodeInfo.ContainerRuntimeVersion = test.runtime(i)
					if err := client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("nodes"), node.DeepCopy(), ""); err != nil {
						t.Fatal(err)
					}
				}
				if test.alive != nil && test.alive(i) {
					say(fakeClock.Now())
				}
				if test.repeats != nil && test.repeats(i) {
					say(time.Date(2024, 1, 31, 12, 0, 0, 0, time.UTC))
				}
				if err := w.look(t.Context()); err != nil {
					t.Fatal(err)
				}
				fakeClock.Step(tick)
			}
			if !slices.Equal(replaced, test.want) {
				t.Errorf("replaced in ticks %v, want %v", replaced, test.want)
			}
			if len(notes) != test.notes {
				t.Errorf("%d notes: %q", len(notes), notes)
			}
		})
	}
}

// TestResultFromStatus: where the log of a pod that has ended cannot be read, or holds nothing, the result comes from the pod's status.
func TestResultFromStatus(t *testing.T) {
	spec := testSpec()
	encode := func(seq int64, run string, event protocol.Event) string {
		event.Version, event.Seq, event.Run, event.Phase = protocol.Version, seq, run, spec.Phase
		line, err := event.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return string(line)
	}
	message := encode(3, spec.Run, protocol.Event{Facts: &protocol.Facts{NewEndpoint: "unix:///x"}}) +
		encode(9, spec.Run, protocol.Event{Result: &protocol.Result{Outcome: protocol.OutcomeSucceeded}})
	for _, test := range []struct {
		name, message string
		whole, ended  bool
		tries         int
		found         bool
		err           error
	}{
		{name: "empty log", message: message, whole: true, ended: true, tries: 1, found: true},
		{name: "log that cannot be read yet", message: message, ended: true, tries: maxUnread - 1},
		{name: "log that cannot be read", message: message, ended: true, tries: maxUnread, found: true},
		{name: "the pod still runs", message: message, whole: true, tries: maxUnread},
		{name: "another run's", message: encode(9, "other", protocol.Event{Result: &protocol.Result{}}), whole: true, ended: true, tries: 1, err: ErrEnded},
		{name: "an older agent's message", message: "fine", whole: true, ended: true, tries: 1, err: ErrEnded},
	} {
		var events []protocol.Event
		w := (&Runner{}).NewFollower(func(e protocol.Event) { events = append(events, e) }, func(string) {}).newFollowed(spec.Phase, spec, InService, true)
		w.runner.Clock = testclock.NewFakeClock(time.Now())
		w.ended, w.message = test.ended, test.message
		var result *protocol.Result
		var err error
		for range test.tries {
			result, err = w.atEnd(test.whole)
		}
		if (result != nil) != test.found || !errors.Is(err, test.err) {
			t.Errorf("%s: %+v %v", test.name, result, err)
		}
		if test.found && (len(events) != 2 || events[0].Facts == nil || !strings.HasPrefix(events[0].Facts.NewEndpoint, "unix:")) {
			t.Errorf("%s: %+v", test.name, events)
		}
	}
}
