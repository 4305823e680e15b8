package plugin

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/assess"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
)

// podListsAtMost is for how many nodes the pods are listed node by node; for more, all pods of the cluster are.
const podListsAtMost = 8

// read asks the server for what the checks need. Pods on nodes that are not on Docker are left out.
func (o *PlanOptions) read(ctx context.Context) (assess.Input, error) {
	in := assess.Input{
		Ignore: o.ignore, Keep: nodejob.Labels(), Flags: assess.Flags{Force: o.rollout.Drain.Force, DeleteEmptyDirData: o.rollout.Drain.DeleteEmptyDirData},
	}
	nodes, err := findSomeNodes(ctx, o.factory, o.client, o.selection)
	if err != nil {
		return in, err
	}
	in.Nodes = nodes
	var onDocker []string
	for i := range nodes {
		if assess.OnDocker(&nodes[i]) {
			onDocker = append(onDocker, nodes[i].Name)
		}
	}
	if len(onDocker) == 0 {
		return in, nil
	}
	some, err := o.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{Limit: 2})
	if err != nil {
		return in, o.factory.explain("list", "nodes", "", err)
	}
	in.Alone = len(some.Items) < 2
	selectors := []string{""}
	if len(onDocker) <= podListsAtMost {
		selectors = nil
		for _, name := range onDocker {
			selectors = append(selectors, fields.OneTermEqualSelector("spec.nodeName", name).String())
		}
	}
	for _, selector := range selectors {
		pods, _, err := listChunks(ctx, o.factory, "pods", metav1.ListOptions{FieldSelector: selector}, o.listPods(ctx, onDocker))
		if err != nil {
			return in, err
		}
		in.Pods = append(in.Pods, pods...)
	}
	in.Budgets, err = o.listBudgets(ctx)
	return in, err
}

// listPods lists one chunk, of which it keeps the pods of these nodes; their names are sorted.
func (o *PlanOptions) listPods(ctx context.Context, nodes []string) func(metav1.ListOptions) ([]corev1.Pod, metav1.ListMeta, error) {
	return func(options metav1.ListOptions) ([]corev1.Pod, metav1.ListMeta, error) {
		list, err := o.client.CoreV1().Pods(corev1.NamespaceAll).List(ctx, options)
		if err != nil {
			return nil, metav1.ListMeta{}, err
		}
		return slices.DeleteFunc(list.Items, func(pod corev1.Pod) bool {
			_, found := slices.BinarySearch(nodes, pod.Spec.NodeName)
			return !found
		}), list.ListMeta, nil
	}
}

// listBudgets lists all PodDisruptionBudgets. Kubernetes before 1.21 has policy/v1beta1 alone, where an empty selector selects no pod.
func (o *PlanOptions) listBudgets(ctx context.Context) ([]policyv1.PodDisruptionBudget, error) {
	budgets, _, err := listChunks(ctx, o.factory, "poddisruptionbudgets.policy", metav1.ListOptions{}, func(options metav1.ListOptions) ([]policyv1.PodDisruptionBudget, metav1.ListMeta, error) {
		list, err := o.client.PolicyV1().PodDisruptionBudgets(corev1.NamespaceAll).List(ctx, options)
		if err != nil {
			return nil, metav1.ListMeta{}, err
		}
		return list.Items, list.ListMeta, nil
	})
	if !apierrors.IsNotFound(err) {
		return budgets, err
	}
	old, err := o.client.PolicyV1beta1().PodDisruptionBudgets(corev1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, o.factory.explain("list", "poddisruptionbudgets.policy", "", err)
	}
	for i := range old.Items {
		b := &old.Items[i]
		budget := policyv1.PodDisruptionBudget{ObjectMeta: b.ObjectMeta}
		if b.Spec.Selector != nil && len(b.Spec.Selector.MatchLabels)+len(b.Spec.Selector.MatchExpressions) > 0 {
			budget.Spec.Selector = b.Spec.Selector
		}
		budget.Status.DisruptionsAllowed = b.Status.DisruptionsAllowed
		budget.Status.CurrentHealthy, budget.Status.DesiredHealthy = b.Status.CurrentHealthy, b.Status.DesiredHealthy
		budgets = append(budgets, budget)
	}
	return budgets, nil
}
