package nodejob

import (
	"errors"
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

// TestNotStarted plays a node whose API shows the cutover's pod Pending, tick by tick of five seconds: it may only count as never
// started while its kubelet is there to say so.
func TestNotStarted(t *testing.T) {
	const tick = 5 * time.Second
	for _, test := range []struct {
		name      string
		inService bool
		// renews tells for a tick whether the Lease is renewed; nil is a cluster without Leases.
		renews func(tick int) bool
		change func(tick int, node *corev1.Node)
		// clock is how far the node's clock is set ahead; nil is one that nobody sets.
		clock func(tick int) time.Duration
		// believed and begun are what it comes to within 60 ticks.
		believed, begun bool
		// earliest is the tick before which it must not be believed.
		earliest int
	}{
		{name: "kubelet is there", renews: func(i int) bool { return i%2 == 0 }, believed: true, earliest: 13},
		{name: "in service it needs no proof", inService: true, renews: func(i int) bool { return i == 0 }, believed: true, earliest: 10},
		{name: "node dies at once", renews: func(i int) bool { return i == 0 }},
		{
			name: "node dies and is shown as not Ready later", renews: func(i int) bool { return i == 0 },
			change: func(i int, node *corev1.Node) {
				if i >= 10 {
					node.Status.Conditions[0].Status = corev1.ConditionUnknown
				}
			},
		},
		{name: "kubelet stopped, then back", renews: func(i int) bool { return i == 0 || i > 30 && i%2 == 0 }, begun: true},
		{
			name: "kubelet stopped, then back with an earlier clock", renews: func(i int) bool { return i == 0 || i > 30 && i%2 == 0 },
			clock: func(i int) time.Duration {
				if i > 30 {
					return -time.Hour
				}
				return 0
			}, begun: true,
		},
		{
			name: "node boots within a Lease's time", renews: func(i int) bool { return i%2 == 0 },
			change: func(i int, node *corev1.Node) {
				if i > 4 {
					node.Status.NodeInfo.BootID = "second"
				}
			}, begun: true,
		},
		{
			name: "node comes back on the other runtime", renews: func(i int) bool { return i%2 == 0 },
			change: func(i int, node *corev1.Node) {
				if i > 4 {
					node.Status.NodeInfo.ContainerRuntimeVersion = "containerd://2.0.0"
				}
			}, begun: true,
		},
		{
			name: "kubelet without a runtime", renews: func(i int) bool { return i%2 == 0 },
			change: func(_ int, node *corev1.Node) { node.Status.Conditions[0].Status = corev1.ConditionFalse },
		},
		{name: "no Leases, node stays Ready", believed: true, earliest: 24},
		{
			name: "no Leases, node is not Ready after the grace period", change: func(i int, node *corev1.Node) {
				if i >= 10 {
					node.Status.Conditions[0].Status = corev1.ConditionUnknown
				}
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := testSpec()
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: spec.Node}, Status: corev1.NodeStatus{
				NodeInfo:   corev1.NodeSystemInfo{BootID: "first", ContainerRuntimeVersion: "docker://20.10.24"},
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			}}
			pod := waiting("ContainerCreating", "")
			pod.Namespace, pod.Labels = Namespace, jobLabels(spec)
			client := fake.NewClientset(node, pod)
			start := time.Date(2024, 1, 31, 12, 0, 0, 0, time.UTC)
			fakeClock := testclock.NewFakeClock(start)
			runner := &Runner{Client: client, Clock: fakeClock}
			lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: spec.Node, Namespace: corev1.NamespaceNodeLease}}
			if test.renews != nil {
				if err := client.Tracker().Add(lease); err != nil {
					t.Fatal(err)
				}
			}
			mode := Unattended
			if test.inService {
				mode = InService
			}
			w := runner.NewFollower(func(protocol.Event) {}, func(string) {}).newFollowed(spec.Phase, spec, mode, false)
			var err error
			at := 0
			for ; at < 60 && err == nil; at++ {
				if test.change != nil {
					test.change(at, node)
					if err := client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("nodes"), node.DeepCopy(), ""); err != nil {
						t.Fatal(err)
					}
				}
				if test.renews != nil && test.renews(at) {
					off := -time.Hour // nothing may rest on the node's clock being right
					if test.clock != nil {
						off += test.clock(at)
					}
					lease.Spec.RenewTime = ptr.To(metav1.NewMicroTime(fakeClock.Now().Add(off)))
					_, updateErr := client.CoordinationV1().Leases(lease.Namespace).Update(t.Context(), lease.DeepCopy(), metav1.UpdateOptions{})
					if updateErr != nil {
						t.Fatal(updateErr)
					}
				}
				err = w.look(t.Context())
				fakeClock.Step(tick)
			}
			var notStarted *StartError
			if errors.As(err, &notStarted) != test.believed || (err != nil) != test.believed {
				t.Errorf("error %v, want one: %t", err, test.believed)
			}
			if at-1 < test.earliest {
				t.Errorf("believed at tick %d, want %d at the earliest", at-1, test.earliest)
			}
			if w.begun != test.begun {
				t.Errorf("begun %t, want %t", w.begun, test.begun)
			}
		})
	}
}
