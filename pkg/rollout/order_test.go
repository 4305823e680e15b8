package rollout

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestOrder(t *testing.T) {
	node := func(name, zone string, labels ...string) corev1.Node {
		n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
		for _, label := range labels {
			n.Labels[label] = ""
		}
		if zone != "" {
			n.Labels[corev1.LabelTopologyZone] = zone
		}
		return n
	}
	nodes := []corev1.Node{
		node("cp-1", "a", "node-role.kubernetes.io/control-plane"), node("cp-0", "b", "node-role.kubernetes.io/master"),
		node("w-3", "a"), node("w-1", "b"), node("w-2", "a"), node("w-0", ""),
	}
	Order(nodes)
	var got []string
	for i := range nodes {
		got = append(got, nodes[i].Name)
	}
	if want := []string{"w-0", "w-2", "w-3", "w-1", "cp-1", "cp-0"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
