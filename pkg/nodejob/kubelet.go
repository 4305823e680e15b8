package nodejob

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// kubeletAway is a pause between two renewals of a kubelet's Lease that tells of a kubelet that was stopped: it renews every 10 s
	// (nodeLeaseDurationSeconds is 40, pkg/kubelet/apis/config/v1beta1, and a quarter of it the interval, pkg/kubelet/kubelet.go).
	kubeletAway = 40 * time.Second
	// kubeletRenewals are how often a Lease has to be renewed while a pod complains. The first may be older than the complaint's
	// last change; with the second, the kubelet has had an interval's time to report a container that it started.
	kubeletRenewals = 2
	// leaseInterval is how often a Lease is read at most.
	leaseInterval = 2 * time.Second
	// unleasedPatience is how long a Node without a Lease that can be read has to stay Ready: longer than node-monitor-grace-period,
	// 40 s and 50 s since Kubernetes 1.32, for which a node that died is shown as Ready.
	unleasedPatience = 70 * time.Second
)

// kubeletWatch tells whether a pod's status can be believed, which is only as new as its kubelet's last word: a kubelet that died or
// was stopped a second after it had started the container leaves the pod Pending.
type kubeletWatch struct {
	client kubernetes.Interface
	node   string

	// looked is when the Lease was last read.
	looked time.Time
	// boot and runtime are what the node reported first; known says that it has.
	known         bool
	boot, runtime string
	// renewed is the Lease's last renewal, on the node's clock, so that two of them can be compared and nothing else.
	renewed time.Time
	// away: the kubelet or the node was not there for a while. What happened meanwhile is not known, and will not be.
	away bool
	// renewals are those since the pod complains, complaining is since when.
	renewals    int
	complaining time.Time
}

// look reads the Lease. It is called with every look at a pod that has not started.
func (w *kubeletWatch) look(ctx context.Context, now time.Time) {
	if !w.looked.IsZero() && now.Sub(w.looked) < leaseInterval {
		return
	}
	w.looked = now
	if !w.known {
		if node, err := w.client.CoreV1().Nodes().Get(ctx, w.node, metav1.GetOptions{}); err == nil {
			w.known, w.boot, w.runtime = true, node.Status.NodeInfo.BootID, node.Status.NodeInfo.ContainerRuntimeVersion
		}
	}
	lease, err := w.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, w.node, metav1.GetOptions{})
	if err != nil || lease.Spec.RenewTime == nil || lease.Spec.RenewTime.Time.Equal(w.renewed) {
		return
	}
	renewed := lease.Spec.RenewTime.Time
	if !w.renewed.IsZero() {
		w.renewals++
		pause := renewed.Sub(w.renewed)
		w.away = w.away || pause > kubeletAway || pause < 0 // a clock that was set back hides how long the pause was
	}
	w.renewed = renewed
}

// content notes that the pod does not complain.
func (w *kubeletWatch) content() { w.complaining, w.renewals = time.Time{}, 0 }

// vouches reports whether the kubelet has been there all the time and says, by being there still, that the pod has not started.
func (w *kubeletWatch) vouches(ctx context.Context, now time.Time) bool {
	if w.complaining.IsZero() {
		w.complaining, w.renewals = now, 0
		return false
	}
	if w.away || !w.known {
		return false
	}
	if w.renewed.IsZero() && now.Sub(w.complaining) < unleasedPatience || !w.renewed.IsZero() && w.renewals < kubeletRenewals {
		return false
	}
	node, err := w.client.CoreV1().Nodes().Get(ctx, w.node, metav1.GetOptions{})
	if err != nil {
		return false
	}
	w.away = node.Status.NodeInfo.BootID != w.boot || node.Status.NodeInfo.ContainerRuntimeVersion != w.runtime
	return !w.away && isNodeReady(node) // a kubelet that cannot ask its runtime does not know what runs
}

func isNodeReady(node *corev1.Node) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}
