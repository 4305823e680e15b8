package plugin

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// TestFleetSkipsUnfit: a node that is not Ready, one that is no machine, one with another runtime and one that an autoscaler is about to remove are skipped
// with the reason and left alone, and the others are switched.
func TestFleetSkipsUnfit(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "node-1", "node-2", "node-3")
	unfit := []struct {
		node   *corev1.Node
		reason string
	}{
		{apiserver.Node("cri-o", "cri-o://1.23.0", "v1.23.17"), "it runs cri-o://1.23.0"},
		{apiserver.Node("removed-soon", "docker://20.10.24", "v1.23.17", func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Value: "1700000000", Effect: corev1.TaintEffectNoSchedule}}
		}), "an autoscaler is about to remove it (taint ToBeDeletedByClusterAutoscaler)"},
		{apiserver.Node("unready", "docker://20.10.24", "v1.23.17", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse }), "it is not Ready"},
		{apiserver.Node("virtual", "", "v1.23.17-vk", func(n *corev1.Node) {
			n.Labels["type"] = "virtual-kubelet"
			n.Spec.Taints = []corev1.Taint{{Key: "virtual-kubelet.io/provider", Value: "azure", Effect: corev1.TaintEffectNoSchedule}}
		}), "a virtual node"},
	}
	versions := map[string]string{}
	for _, u := range unfit {
		f.CreateNodes(t, u.node)
		node, err := f.Client().CoreV1().Nodes().Get(t.Context(), u.node.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		versions[node.Name] = node.ResourceVersion
	}
	seen := podsOfPhases(t, f.Server)
	// The node that is not Ready does not count against the budget of one: the cluster was without it before.
	r := f.call(t.Context(), "switch", "--all")
	if want := "cri-o: skipped, node-1: done, node-2: done, node-3: done, removed-soon: skipped, unready: skipped, virtual: skipped"; r.code != 0 || r.results() != want {
		t.Errorf("exit %d, %s", r.code, r.results())
	}
	if got := f.onContainerd(); !slices.Equal(got, []string{"node-1", "node-2", "node-3"}) {
		t.Errorf("on containerd: %q", got)
	}
	for _, u := range unfit {
		i := slices.IndexFunc(r.result.Nodes, func(n v1alpha1.NodeResult) bool { return n.Node == u.node.Name })
		if i < 0 || !strings.Contains(r.result.Nodes[i].Reason, u.reason) {
			t.Errorf("node %s is skipped without %q: %+v", u.node.Name, u.reason, r.result.Nodes)
		}
		node, err := f.Client().CoreV1().Nodes().Get(t.Context(), u.node.Name, metav1.GetOptions{})
		if err != nil || node.ResourceVersion != versions[node.Name] {
			t.Errorf("node %s was changed: %v, %v", u.node.Name, node, err)
		}
	}
	for _, pods := range seen() {
		for _, pod := range pods {
			if versions[pod.Spec.NodeName] != "" {
				t.Errorf("pod %s was sent to %s", pod.Name, pod.Spec.NodeName)
			}
		}
	}
	if len(seen()[nodejob.PhaseCanary]) == 0 {
		t.Error("no pods were seen at all")
	}
	f.noneTwice(1)
}
