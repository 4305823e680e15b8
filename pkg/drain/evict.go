package drain

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	policyv1beta1 "k8s.io/api/policy/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	policyv1client "k8s.io/client-go/kubernetes/typed/policy/v1"
	policyv1beta1client "k8s.io/client-go/kubernetes/typed/policy/v1beta1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/oldapi"
)

// client is the drainer's client with the eviction calls recorded, since the library keeps a refused eviction's reason to itself and retries for
// ever, and with single pods looked up in a watch.
func (w *blockWatch) client(ctx context.Context, pods []corev1.Pod, departures *departures) kubernetes.Interface {
	known, uids := map[string]map[string]string{}, map[string]types.UID{}
	for i := range pods {
		known[pods[i].Namespace+"/"+pods[i].Name], uids[pods[i].Namespace+"/"+pods[i].Name] = pods[i].Labels, pods[i].UID
	}
	core := &watchedCore{w.drainer.client.CoreV1(), departures, uids}
	return &evictionRecorder{Interface: w.drainer.client, core: core, heard: func(namespace, pod string, err error) {
		switch {
		case err == nil:
			w.accepted(namespace, pod)
		case apierrors.IsTooManyRequests(err):
			w.evicted(Block{
				Namespace: namespace, Pod: pod, Since: w.drainer.now(), Message: err.Error(),
				Budgets: w.drainer.budgets(ctx, namespace, known[namespace+"/"+pod]),
			})
		case !apierrors.IsNotFound(err) && !isTransient(err):
			w.refuse()
		}
	}}
}

func (w *blockWatch) refuse() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused = true
}

// budgets names the PodDisruptionBudgets that select a pod and allow no disruption, or all that select it if each allows some
// (they change between the two requests). Not being allowed to list them only makes the report poorer.
func (d *Drainer) budgets(ctx context.Context, namespace string, podLabels map[string]string) []string {
	list, err := oldapi.ListBudgets(ctx, d.client, namespace, metav1.ListOptions{})
	if err != nil {
		return nil
	}
	var tight, all []string
	for i := range list.Items {
		budget := &list.Items[i]
		selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector)
		if err != nil || !selector.Matches(labels.Set(podLabels)) {
			continue
		}
		text := fmt.Sprintf("%s (%d healthy, needs %d)", budget.Name, budget.Status.CurrentHealthy, budget.Status.DesiredHealthy)
		all = append(all, text)
		if budget.Status.DisruptionsAllowed <= 0 {
			tight = append(tight, text)
		}
	}
	if len(tight) == 0 {
		tight = all
	}
	slices.Sort(tight)
	return tight
}

// evictionRecorder calls heard after each eviction.
type evictionRecorder struct {
	kubernetes.Interface
	core  *watchedCore
	heard func(namespace, pod string, err error)
}

func (c *evictionRecorder) CoreV1() corev1client.CoreV1Interface { return c.core }

func (c *evictionRecorder) PolicyV1() policyv1client.PolicyV1Interface {
	return &recordingV1{c.Interface.PolicyV1(), c.heard}
}

func (c *evictionRecorder) PolicyV1beta1() policyv1beta1client.PolicyV1beta1Interface {
	return &recordingV1beta1{c.Interface.PolicyV1beta1(), c.heard}
}

type recordingV1 struct {
	policyv1client.PolicyV1Interface
	heard func(namespace, pod string, err error)
}

func (c *recordingV1) Evictions(namespace string) policyv1client.EvictionInterface {
	return &evictionsV1{c.PolicyV1Interface.Evictions(namespace), c.heard}
}

type evictionsV1 struct {
	policyv1client.EvictionInterface
	heard func(namespace, pod string, err error)
}

func (c *evictionsV1) Evict(ctx context.Context, eviction *policyv1.Eviction) error {
	err := c.EvictionInterface.Evict(ctx, eviction)
	c.heard(eviction.Namespace, eviction.Name, err)
	return err
}

type recordingV1beta1 struct {
	policyv1beta1client.PolicyV1beta1Interface
	heard func(namespace, pod string, err error)
}

func (c *recordingV1beta1) Evictions(namespace string) policyv1beta1client.EvictionInterface {
	return &evictionsV1beta1{c.PolicyV1beta1Interface.Evictions(namespace), c.heard}
}

type evictionsV1beta1 struct {
	policyv1beta1client.EvictionInterface
	heard func(namespace, pod string, err error)
}

func (c *evictionsV1beta1) Evict(ctx context.Context, eviction *policyv1beta1.Eviction) error {
	err := c.EvictionInterface.Evict(ctx, eviction)
	c.heard(eviction.Namespace, eviction.Name, err)
	return err
}
