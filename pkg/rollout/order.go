// Package rollout is about many nodes: in which order they are moved, which of them may start now, and what stops them all. Next decides, and knows
// neither time nor API; Driver is the loop around it. What happens to one node is its caller's business.
package rollout

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// controlPlaneLabels are those by which kubeadm and others mark nodes of the control plane; the first is from before Kubernetes 1.20.
var controlPlaneLabels = []string{"node-role.kubernetes.io/master", "node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/controlplane"}

// IsControlPlane tells by its labels whether a node is one of the control plane.
func IsControlPlane(node *corev1.Node) bool {
	return slices.ContainsFunc(controlPlaneLabels, func(label string) bool { _, ok := node.Labels[label]; return ok })
}

// Order sorts nodes in the order in which they start, so that the first worker is the canary: workers before
// the control plane, whose nodes matter most; one zone after the other, so that what goes wrong harms one zone; then by name.
func Order(nodes []corev1.Node) {
	group := func(node *corev1.Node) int {
		if IsControlPlane(node) {
			return 1
		}
		return 0
	}
	zone := func(node *corev1.Node) string {
		return cmp.Or(node.Labels[corev1.LabelTopologyZone], node.Labels[corev1.LabelFailureDomainBetaZone])
	}
	slices.SortStableFunc(nodes, func(a, b corev1.Node) int {
		return cmp.Or(cmp.Compare(group(&a), group(&b)), cmp.Compare(zone(&a), zone(&b)), cmp.Compare(a.Name, b.Name))
	})
}
