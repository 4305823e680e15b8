// Package oldapi lets the rest of this program use the current version of each API on API servers that have only an earlier one. What a
// server has is learned by asking for the current version: a server without it answers "not found", which a list never does for another
// reason. The pkg/nodeswitch, pkg/nodejob, pkg/drain and pkg/plugin packages call it. It changes nothing but by Evict.
package oldapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	discoveryv1beta1 "k8s.io/api/discovery/v1beta1"
	policyv1 "k8s.io/api/policy/v1"
	policyv1beta1 "k8s.io/api/policy/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	serverversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/paging"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// OldestMinor is the minor version of the oldest Kubernetes 1.x whose API server this program works with. The tests run against that one
// (`make api-versions`). Before it, priority class system-node-critical is for namespace kube-system alone
// (kubernetes 1.16, plugin/pkg/admission/priority).
const OldestMinor = 17

// UnsupportedError says that the API server is older than that.
type UnsupportedError struct{ Version string }

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("the API server is Kubernetes %s: the oldest that is supported is 1.%d", e.Version, OldestMinor)
}

// CheckServer returns an *UnsupportedError where the API server is too old. A server that does not say its version, or not to this user, passes.
func CheckServer(ctx context.Context, client kubernetes.Interface) error {
	data, err := client.Discovery().RESTClient().Get().AbsPath("/version").Do(ctx).Raw()
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get server version: %w", err)
	}
	var server serverversion.Info
	if json.Unmarshal(data, &server) != nil {
		return nil
	}
	found, readable := version.Parse(server.GitVersion)
	if readable && (found.Major < 1 || found.Major == 1 && found.Minor < OldestMinor) {
		return &UnsupportedError{Version: server.GitVersion}
	}
	return nil
}

// ListBudgets lists PodDisruptionBudgets. Kubernetes before 1.21 has policy/v1beta1 alone, where an empty selector selects no pod; in v1 it
// selects all.
func ListBudgets(ctx context.Context, client kubernetes.Interface, namespace string, options metav1.ListOptions) (*policyv1.PodDisruptionBudgetList, error) {
	list, err := client.PolicyV1().PodDisruptionBudgets(namespace).List(ctx, options)
	if !apierrors.IsNotFound(err) {
		return list, err
	}
	old, err := client.PolicyV1beta1().PodDisruptionBudgets(namespace).List(ctx, options)
	if err != nil {
		return nil, err
	}
	list = &policyv1.PodDisruptionBudgetList{}
	if err := convert(old, list); err != nil {
		return nil, err
	}
	for i := range list.Items {
		if s := list.Items[i].Spec.Selector; s != nil && len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
			list.Items[i].Spec.Selector = nil
		}
	}
	return list, nil
}

// ListCronJobs lists CronJobs. Kubernetes before 1.21 has batch/v1beta1 alone.
func ListCronJobs(ctx context.Context, client kubernetes.Interface, namespace string, options metav1.ListOptions) (*batchv1.CronJobList, error) {
	list, err := client.BatchV1().CronJobs(namespace).List(ctx, options)
	if !apierrors.IsNotFound(err) {
		return list, err
	}
	old, err := client.BatchV1beta1().CronJobs(namespace).List(ctx, options)
	if err != nil {
		return nil, err
	}
	list = &batchv1.CronJobList{}
	return list, convert(old, list)
}

// Evict evicts a pod. Kubernetes before 1.22 has the eviction of policy/v1beta1 alone, and says of v1 that it is a bad request: it
// knows no such kind.
func Evict(ctx context.Context, client kubernetes.Interface, eviction *policyv1.Eviction) error {
	err := client.PolicyV1().Evictions(eviction.Namespace).Evict(ctx, eviction)
	if !apierrors.IsBadRequest(err) {
		return err
	}
	oldErr := client.PolicyV1beta1().Evictions(eviction.Namespace).Evict(ctx, &policyv1beta1.Eviction{
		ObjectMeta: eviction.ObjectMeta, DeleteOptions: eviction.DeleteOptions,
	})
	if apierrors.IsBadRequest(oldErr) {
		return err // it was not the version
	}
	return oldErr
}

// HasReadyEndpoint reports whether a Service has a ready endpoint; known is false where there is nothing that says so. Kubernetes before 1.21
// has EndpointSlices of discovery.k8s.io/v1beta1 alone, and may have them switched off: then it is the Endpoints that count.
func HasReadyEndpoint(ctx context.Context, client kubernetes.Interface, namespace, service string) (ready, known bool, err error) {
	ofService := metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service}
	err = paging.Each(ctx, client.DiscoveryV1().EndpointSlices(namespace).List, ofService, func(slice *discoveryv1.EndpointSlice) bool {
		known = true
		ready = slices.ContainsFunc(slice.Endpoints, func(e discoveryv1.Endpoint) bool { return ptr.Deref(e.Conditions.Ready, true) })
		return !ready
	})
	if apierrors.IsNotFound(err) {
		err = paging.Each(ctx, client.DiscoveryV1beta1().EndpointSlices(namespace).List, ofService, func(slice *discoveryv1beta1.EndpointSlice) bool {
			known = true
			ready = slices.ContainsFunc(slice.Endpoints, func(e discoveryv1beta1.Endpoint) bool { return ptr.Deref(e.Conditions.Ready, true) })
			return !ready
		})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return false, false, err
	}
	if known {
		return ready, true, nil
	}
	endpoints, err := client.CoreV1().Endpoints(namespace).Get(ctx, service, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	return hasAddress(endpoints), true, nil
}

func hasAddress(endpoints *corev1.Endpoints) bool {
	for _, subset := range endpoints.Subsets {
		if len(subset.Addresses) > 0 {
			return true
		}
	}
	return false
}

// convert copies an object of one version to another whose fields have the same names in JSON.
func convert(from, to any) error {
	data, err := json.Marshal(from)
	if err == nil {
		err = json.Unmarshal(data, to)
	}
	if err != nil {
		return fmt.Errorf("convert %T: %w", from, err)
	}
	return nil
}
