package plugin

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/assess"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/oldapi"
)

const (
	// podListsAtMost is for how many nodes the pods are listed node by node; for more, all pods of the cluster are.
	podListsAtMost = 8
	// allPodsAtMost is up to how many nodes a cluster's pods are all listed even for few of them, since room and replicas cannot be
	// judged without: some 10,000 pods, a few seconds.
	allPodsAtMost = 200
)

// clusterReader asks the server for what the checks need.
type clusterReader struct {
	factory *cli.Factory
	client  kubernetes.Interface
	drain   drain.Options
	ignore  []string
	// allPods takes the place of allPodsAtMost in tests.
	allPods int

	// notes say what was not read, a sentence each.
	notes []string
}

func (r *clusterReader) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// input is what needs no request.
func (r *clusterReader) input(nodes []corev1.Node) (in assess.Input, onDocker []string) {
	in = assess.Input{
		Nodes: nodes, Ignore: r.ignore, Keep: nodejob.Labels(),
		Flags: assess.Flags{Force: r.drain.Force, DeleteEmptyDirData: r.drain.DeleteEmptyDirData, DisableEviction: r.drain.DisableEviction},
	}
	for i := range nodes {
		if assess.OnDocker(&nodes[i]) {
			onDocker = append(onDocker, nodes[i].Name)
		}
	}
	slices.Sort(onDocker)
	return in, onDocker
}

// forSwitch reads pods and budgets alone: what could block a drain.
func (r *clusterReader) forSwitch(ctx context.Context, nodes []corev1.Node) (assess.Input, error) {
	in, onDocker := r.input(nodes)
	if len(onDocker) == 0 {
		return in, nil
	}
	selector, err := labels.Parse(r.drain.PodSelector)
	if err != nil {
		return in, fmt.Errorf("--pod-selector %q: %w", r.drain.PodSelector, err)
	}
	in.Evicted = selector
	if in.Pods, err = r.pods(ctx, onDocker, len(onDocker) > podListsAtMost); err != nil {
		return in, err
	}
	in.Budgets, err = r.budgets(ctx)
	return in, r.mayLack(err, "PodDisruptionBudgets")
}

// forPlan reads all that the checks can use. Pods on nodes that are not on Docker are read where room is judged.
func (r *clusterReader) forPlan(ctx context.Context, nodes []corev1.Node) (assess.Input, error) {
	in, onDocker := r.input(nodes)
	if len(onDocker) == 0 {
		return in, nil
	}
	some, err := r.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{Limit: int64(r.allPods) + 1})
	if err != nil {
		return in, r.factory.Explain("list", "nodes", "", err)
	}
	in.Alone = len(some.Items) < 2
	in.AllNodes = some.Items
	in.Everything = some.Continue == ""
	if !in.Everything {
		r.note("Whether other nodes have room for the pods, and which pods are their owner's only ones, was not looked at: the cluster has more than %d nodes.", r.allPods)
	}
	if in.Pods, err = r.pods(ctx, onDocker, in.Everything || len(onDocker) > podListsAtMost); err != nil {
		return in, err
	}
	in.Budgets, err = r.budgets(ctx)
	if err := r.mayLack(err, "PodDisruptionBudgets"); err != nil {
		return in, err
	}
	if err := r.mayLack(r.readVolumes(ctx, &in), "PersistentVolumes and their claims"); err != nil {
		return in, err
	}
	return in, r.mayLack(r.readCronJobs(ctx, &in), "CronJobs")
}

// mayLack turns a lack of permission to a note.
func (r *clusterReader) mayLack(err error, what string) error {
	if apierrors.IsForbidden(err) {
		r.note("You may not list %s: what depends on them was not looked at.", what)
		return nil
	}
	return err
}

// pods lists the pods of nodes, whose names are sorted, or all pods.
func (r *clusterReader) pods(ctx context.Context, nodes []string, all bool) ([]corev1.Pod, error) {
	selectors := []string{""}
	if !all {
		selectors = nil
		for _, name := range nodes {
			selectors = append(selectors, fields.OneTermEqualSelector("spec.nodeName", name).String())
		}
	}
	var pods []corev1.Pod
	for _, selector := range selectors {
		some, _, err := cli.ListChunks(ctx, r.factory, "pods", metav1.ListOptions{FieldSelector: selector}, func(options metav1.ListOptions) ([]corev1.Pod, metav1.ListMeta, error) {
			list, err := r.client.CoreV1().Pods(corev1.NamespaceAll).List(ctx, options)
			if err != nil {
				return nil, metav1.ListMeta{}, err
			}
			return list.Items, list.ListMeta, nil
		})
		if err != nil {
			return nil, err
		}
		pods = append(pods, some...)
	}
	return pods, nil
}

// budgets lists all PodDisruptionBudgets.
func (r *clusterReader) budgets(ctx context.Context) ([]policyv1.PodDisruptionBudget, error) {
	budgets, _, err := cli.ListChunks(ctx, r.factory, "poddisruptionbudgets.policy", metav1.ListOptions{}, func(options metav1.ListOptions) ([]policyv1.PodDisruptionBudget, metav1.ListMeta, error) {
		list, err := oldapi.ListBudgets(ctx, r.client, corev1.NamespaceAll, options)
		if err != nil {
			return nil, metav1.ListMeta{}, err
		}
		return list.Items, list.ListMeta, nil
	})
	return budgets, err
}

// readVolumes lists claims and volumes where a pod has a claim.
func (r *clusterReader) readVolumes(ctx context.Context, in *assess.Input) error {
	if !slices.ContainsFunc(in.Pods, func(pod corev1.Pod) bool {
		return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.PersistentVolumeClaim != nil })
	}) {
		return nil
	}
	var err error
	in.Volumes, _, err = cli.ListChunks(ctx, r.factory, "persistentvolumes", metav1.ListOptions{}, func(options metav1.ListOptions) ([]corev1.PersistentVolume, metav1.ListMeta, error) {
		list, err := r.client.CoreV1().PersistentVolumes().List(ctx, options)
		if err != nil {
			return nil, metav1.ListMeta{}, err
		}
		return list.Items, list.ListMeta, nil
	})
	if err != nil {
		return err
	}
	in.Claims, _, err = cli.ListChunks(ctx, r.factory, "persistentvolumeclaims", metav1.ListOptions{}, func(options metav1.ListOptions) ([]corev1.PersistentVolumeClaim, metav1.ListMeta, error) {
		list, err := r.client.CoreV1().PersistentVolumeClaims(corev1.NamespaceAll).List(ctx, options)
		if err != nil {
			return nil, metav1.ListMeta{}, err
		}
		return list.Items, list.ListMeta, nil
	})
	return err
}

// readCronJobs reads the templates of CronJobs, most of which have no pod right now.
func (r *clusterReader) readCronJobs(ctx context.Context, in *assess.Input) error {
	templates, _, err := cli.ListChunks(ctx, r.factory, "cronjobs.batch", metav1.ListOptions{}, func(options metav1.ListOptions) ([]assess.Template, metav1.ListMeta, error) {
		list, err := oldapi.ListCronJobs(ctx, r.client, corev1.NamespaceAll, options)
		if err != nil {
			return nil, metav1.ListMeta{}, err
		}
		var templates []assess.Template
		for i := range list.Items {
			c := &list.Items[i]
			templates = append(templates, assess.Template{Kind: "CronJob", Namespace: c.Namespace, Name: c.Name, Spec: c.Spec.JobTemplate.Spec.Template.Spec})
		}
		return templates, list.ListMeta, nil
	})
	in.Templates = templates
	return err
}
