// Package uninstall finds what this program left in the cluster, and removes it. It removes nothing while a run is open, and nothing that somebody
// else made. What is left on hosts is the agent's business.
package uninstall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1beta1 "k8s.io/api/policy/v1beta1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/jobnamespace"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/paging"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rolloutrecord"
)

// Object is one object that this program made in the cluster, or made an entry in.
type Object struct {
	// Name is as kubectl has it: "namespace/kubectl-runtime".
	Name string
	// What says what is removed, where that is not the object itself.
	What    string
	removal func(context.Context) error
}

// Found is all that this program left in the cluster.
type Found struct {
	Objects []Object
	// Open says which runs are open, a sentence each: nothing may be removed then.
	Open []string
	// Notes say what was not looked at, or stays.
	Notes []string
}

// Finder finds what this program left in a cluster.
type Finder struct {
	Client kubernetes.Interface
	// Metadata reads objects of any kind, also of those that later API servers no longer have.
	Metadata metadata.Interface
	Clock    clock.Clock
	// Holder is whose claims are this process's own.
	Holder string
}

// Find lists what this program left in the cluster, in the order in which it is removed. It changes nothing.
func (f Finder) Find(ctx context.Context) (*Found, error) {
	found := &Found{}
	if err := f.findNodes(ctx, found); err != nil {
		return nil, err
	}
	namespace, stays, err := f.findNamespace(ctx, found)
	if err != nil {
		return nil, err
	}
	for _, k := range kinds {
		if k.own && !stays {
			continue
		}
		if err := f.findKind(ctx, found, k, namespace != nil); err != nil {
			return nil, err
		}
	}
	if namespace != nil { // what is in it goes with it
		found.Objects = append(found.Objects, *namespace)
	}
	for _, k := range rightKinds {
		if err := f.findKind(ctx, found, k, namespace != nil); err != nil {
			return nil, err
		}
	}
	isOwn := func(o Object) int { return strings.Count(o.Name, "/"+ownRole) }
	slices.SortStableFunc(found.Objects, func(a, b Object) int { return isOwn(a) - isOwn(b) })
	return found, nil
}

// ownRole is the role in docs/rbac.yaml that lets a user uninstall. Who has no other rights can remove all but the last of its objects: a role that is
// bound to nobody.
const ownRole = "kubectl-runtime-uninstall"

// remove removes one object. One that is gone already is no error.
func (o Object) remove(ctx context.Context) error {
	if err := o.removal(ctx); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove %s: %w", o.Name, err)
	}
	return nil
}

// findNodes lists nodes with annotations of this program, and those whose run is open.
func (f Finder) findNodes(ctx context.Context, found *Found) error {
	err := paging.Each(ctx, f.Client.CoreV1().Nodes().List, metav1.ListOptions{}, func(node *corev1.Node) bool {
		name, own, info := node.Name, nodestate.Own(node), nodestate.Read(node)
		if len(own) == 0 {
			return true
		}
		if info.IsRunOpen() {
			found.Open = append(found.Open, fmt.Sprintf("node %s: its run is %s", name, info.State))
		}
		found.Objects = append(found.Objects, Object{
			Name: "node/" + name, What: fmt.Sprintf("%d annotations", len(own)),
			removal: func(ctx context.Context) error { return nodestate.Forget(ctx, f.Client, name, own) },
		})
		return true
	})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	return nil
}

// kind is a resource of which this program, or a page of its documentation, makes objects. They have its labels.
type kind struct {
	name     string
	resource schema.GroupVersionResource
	// own: only those in the program's own namespace, where that stays.
	own bool
}

// rightKinds are removed last, since a user may have the right to do so from them: those that give a right before those that say which.
var rightKinds = []kind{
	{"rolebinding", rbacv1.SchemeGroupVersion.WithResource("rolebindings"), false},
	{"role", rbacv1.SchemeGroupVersion.WithResource("roles"), false},
	{"clusterrolebinding", rbacv1.SchemeGroupVersion.WithResource("clusterrolebindings"), false},
	{"clusterrole", rbacv1.SchemeGroupVersion.WithResource("clusterroles"), false},
}

// kinds are in the order in which objects are removed.
var kinds = []kind{
	{"podsecuritypolicy", policyv1beta1.SchemeGroupVersion.WithResource("podsecuritypolicies"), false},                                        // until Kubernetes 1.24
	{"validatingadmissionpolicybinding", admissionregistrationv1.SchemeGroupVersion.WithResource("validatingadmissionpolicybindings"), false}, // since 1.30
	{"validatingadmissionpolicy", admissionregistrationv1.SchemeGroupVersion.WithResource("validatingadmissionpolicies"), false},
	{"job", batchv1.SchemeGroupVersion.WithResource("jobs"), true},
	{"pod", corev1.SchemeGroupVersion.WithResource("pods"), true},
	{"configmap", corev1.SchemeGroupVersion.WithResource("configmaps"), true}, // of rollouts
	{"lease", coordinationv1.SchemeGroupVersion.WithResource("leases"), true},
}

// findKind lists the objects of a kind, by their labels. Those in the program's own namespace go with it where that is removed.
func (f Finder) findKind(ctx context.Context, found *Found, k kind, namespaceGoes bool) error {
	where := metav1.NamespaceAll
	if k.own {
		where = nodejob.Namespace
	}
	all := f.Metadata.Resource(k.resource)
	labelled := metav1.ListOptions{LabelSelector: labels.SelectorFromSet(nodejob.Labels()).String()}
	err := paging.Each(ctx, all.Namespace(where).List, labelled, func(object *metav1.PartialObjectMetadata) bool {
		name, namespace, what := object.Name, object.Namespace, ""
		if namespace == nodejob.Namespace && namespaceGoes {
			return true
		}
		if namespace != "" {
			what = "in namespace " + namespace
		}
		found.Objects = append(found.Objects, Object{Name: k.name + "/" + name, What: what, removal: func(ctx context.Context) error {
			return all.Namespace(namespace).Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)})
		}})
		return true
	})
	switch {
	case err == nil, apierrors.IsNotFound(err), apierrors.IsForbidden(err) && !f.serves(k.resource):
		return nil
	case apierrors.IsForbidden(err):
		found.Notes = append(found.Notes, fmt.Sprintf("you may not list %s: those of kubectl runtime were not looked for", k.resource.GroupResource()))
		return nil
	}
	return fmt.Errorf("list %s: %w", k.resource.Resource, err)
}

// serves reports whether the API server has a resource. One that does not say is taken to have it.
func (f Finder) serves(resource schema.GroupVersionResource) bool {
	list, err := f.Client.Discovery().ServerResourcesForGroupVersion(resource.GroupVersion().String())
	if err != nil {
		return !apierrors.IsNotFound(err)
	}
	return slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == resource.Resource })
}

// findNamespace returns the program's namespace, to be removed with all in it, or nil. It stays where somebody else has made it, or uses it.
func (f Finder) findNamespace(ctx context.Context, found *Found) (object *Object, stays bool, err error) {
	namespaces, own := f.Client.CoreV1().Namespaces(), nodejob.Namespace
	namespace, err := namespaces.Get(ctx, own, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("get namespace %s: %w", own, err)
	}
	err = paging.Each(ctx, f.Client.CoordinationV1().Leases(own).List, metav1.ListOptions{}, func(lease *coordinationv1.Lease) bool {
		if other := claim.Foreign(lease, f.Holder); other != nil && f.Clock.Now().Before(other.Until) {
			what := "node " + lease.Name
			if rollout := rolloutrecord.RolloutOf(lease); rollout != "" {
				what = "rollout " + rollout
			}
			found.Open = append(found.Open, what+": "+other.Error())
		}
		return true
	})
	if err != nil {
		return nil, false, fmt.Errorf("list leases: %w", err)
	}
	if _, looks := (jobnamespace.Namespace{Client: f.Client, Clock: f.Clock}).OpenRuns(namespace, ""); looks > 0 {
		found.Open = append(found.Open, fmt.Sprintf("%d looks at hosts", looks))
	}
	foreign := ""
	err = paging.Each(ctx, f.Client.CoreV1().Pods(own).List, metav1.ListOptions{}, func(pod *corev1.Pod) bool {
		if !labels.SelectorFromSet(nodejob.Labels()).Matches(labels.Set(pod.Labels)) {
			foreign = pod.Name
		}
		return foreign == ""
	})
	if err != nil {
		return nil, false, fmt.Errorf("list pods: %w", err)
	}
	why := ""
	switch {
	case namespace.Labels[nodejob.LabelManagedBy] != nodejob.Labels()[nodejob.LabelManagedBy]:
		why = "kubectl runtime did not make it"
	case foreign != "":
		why = fmt.Sprintf("pod %s in it is not kubectl runtime's", foreign)
	}
	if why != "" {
		found.Notes = append(found.Notes, fmt.Sprintf("namespace %s stays: %s", own, why))
		return nil, true, nil
	}
	uid := namespace.UID
	return &Object{Name: "namespace/" + own, What: "with all in it", removal: func(ctx context.Context) error {
		return namespaces.Delete(ctx, own, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	}}, false, nil
}

// Remove removes what Find found, and says so after each. It goes on after an error.
func Remove(ctx context.Context, found *Found, done func(Object)) error {
	var errs []error
	for _, object := range found.Objects {
		if err := object.remove(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		done(object)
	}
	return errors.Join(errs...)
}
