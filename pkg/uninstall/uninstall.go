// Package uninstall finds what this program left in the cluster, and removes it. It removes nothing while a run is open, and nothing that somebody
// else made. What is left on hosts is the agent's business.
package uninstall

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/access"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/jobnamespace"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
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
	Clock  clock.Clock
	// Holder is whose claims are this process's own.
	Holder string
}

// Find lists what this program left in the cluster, in the order in which it is removed. It changes nothing.
func (f Finder) Find(ctx context.Context) (*Found, error) {
	found := &Found{}
	for _, look := range []func(context.Context, *Found) error{f.findNodes, f.findRoles, f.findNamespace} {
		if err := look(ctx, found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// remove removes one object. One that is gone already is no error.
func (o Object) remove(ctx context.Context) error {
	if err := o.removal(ctx); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove %s: %w", o.Name, err)
	}
	return nil
}

// findNodes lists nodes with annotations of this program, and those whose run is open.
func (f Finder) findNodes(ctx context.Context, found *Found) error {
	for options := (metav1.ListOptions{Limit: 500}); ; {
		nodes, err := f.Client.CoreV1().Nodes().List(ctx, options)
		if err != nil {
			return fmt.Errorf("list nodes: %w", err)
		}
		for i := range nodes.Items {
			node := &nodes.Items[i]
			own := nodestate.Own(node)
			if len(own) == 0 {
				continue
			}
			if nodestate.Read(node).IsRunOpen() {
				found.Open = append(found.Open, fmt.Sprintf("node %s: its run is %s", node.Name, nodestate.Read(node).State))
			}
			found.Objects = append(found.Objects, Object{
				Name: "node/" + node.Name, What: fmt.Sprintf("%d annotations", len(own)),
				removal: func(ctx context.Context) error { return nodestate.Forget(ctx, f.Client, node.Name, own) },
			})
		}
		if options.Continue = nodes.Continue; options.Continue == "" {
			return nil
		}
	}
}

// findRoles lists the roles and bindings of docs/rbac.yaml, by their labels. Those in the program's own namespace go with it.
func (f Finder) findRoles(ctx context.Context, found *Found) error {
	api, options := f.Client.RbacV1(), metav1.ListOptions{LabelSelector: labels.SelectorFromSet(nodejob.Labels()).String()}
	for _, kind := range []struct {
		name   string
		list   func() (runtime.Object, error)
		remove func(ctx context.Context, namespace, name string) error
	}{
		{"clusterrolebinding", func() (runtime.Object, error) { return api.ClusterRoleBindings().List(ctx, options) }, func(ctx context.Context, _, name string) error {
			return api.ClusterRoleBindings().Delete(ctx, name, metav1.DeleteOptions{})
		}},
		{"clusterrole", func() (runtime.Object, error) { return api.ClusterRoles().List(ctx, options) }, func(ctx context.Context, _, name string) error {
			return api.ClusterRoles().Delete(ctx, name, metav1.DeleteOptions{})
		}},
		{"rolebinding", func() (runtime.Object, error) { return api.RoleBindings("").List(ctx, options) }, func(ctx context.Context, namespace, name string) error {
			return api.RoleBindings(namespace).Delete(ctx, name, metav1.DeleteOptions{})
		}},
		{"role", func() (runtime.Object, error) { return api.Roles("").List(ctx, options) }, func(ctx context.Context, namespace, name string) error {
			return api.Roles(namespace).Delete(ctx, name, metav1.DeleteOptions{})
		}},
	} {
		list, err := kind.list()
		if apierrors.IsForbidden(err) {
			found.Notes = append(found.Notes, fmt.Sprintf("you may not list %ss.%s: those of docs/rbac.yaml were not looked for", kind.name, access.RBACGroup))
			continue
		}
		if err != nil {
			return fmt.Errorf("list %ss: %w", kind.name, err)
		}
		err = meta.EachListItem(list, func(item runtime.Object) error {
			object, err := meta.Accessor(item)
			if err != nil {
				return err
			}
			if object.GetNamespace() == nodejob.Namespace {
				return nil
			}
			where := ""
			if object.GetNamespace() != "" {
				where = "in namespace " + object.GetNamespace()
			}
			found.Objects = append(found.Objects, Object{Name: kind.name + "/" + object.GetName(), What: where, removal: func(ctx context.Context) error {
				return kind.remove(ctx, object.GetNamespace(), object.GetName())
			}})
			return nil
		})
		if err != nil {
			return fmt.Errorf("list %ss: %w", kind.name, err)
		}
	}
	return nil
}

// findNamespace is about the program's namespace with all in it. One that somebody else has made, or uses, stays.
func (f Finder) findNamespace(ctx context.Context, found *Found) error {
	namespaces, own := f.Client.CoreV1().Namespaces(), nodejob.Namespace
	namespace, err := namespaces.Get(ctx, own, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get namespace %s: %w", own, err)
	}
	leases, err := f.Client.CoordinationV1().Leases(own).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for i := range leases.Items {
		if other := claim.Foreign(&leases.Items[i], f.Holder); other != nil && f.Clock.Now().Before(other.Until) {
			what := "node " + leases.Items[i].Name
			if rollout := rolloutrecord.RolloutOf(&leases.Items[i]); rollout != "" {
				what = "rollout " + rollout
			}
			found.Open = append(found.Open, what+": "+other.Error())
		}
	}
	if _, looks := (jobnamespace.Namespace{Client: f.Client, Clock: f.Clock}).OpenRuns(namespace, ""); looks > 0 {
		found.Open = append(found.Open, fmt.Sprintf("%d looks at hosts", looks))
	}
	pods, err := f.Client.CoreV1().Pods(own).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	foreign := ""
	for i := range pods.Items {
		if !labels.SelectorFromSet(nodejob.Labels()).Matches(labels.Set(pods.Items[i].Labels)) {
			foreign = pods.Items[i].Name
		}
	}
	stays := ""
	switch {
	case namespace.Labels[nodejob.LabelManagedBy] != nodejob.Labels()[nodejob.LabelManagedBy]:
		stays = "kubectl runtime did not make it"
	case foreign != "":
		stays = fmt.Sprintf("pod %s in it is not kubectl runtime's", foreign)
	}
	if stays != "" {
		found.Notes = append(found.Notes, fmt.Sprintf("namespace %s stays: %s", own, stays))
		return f.findRecords(ctx, found)
	}
	uid := namespace.UID
	found.Objects = append(found.Objects, Object{Name: "namespace/" + own, What: "with all in it", removal: func(ctx context.Context) error {
		return namespaces.Delete(ctx, own, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	}})
	return nil
}

// findRecords lists the records and the slots of rollouts in a namespace that stays.
func (f Finder) findRecords(ctx context.Context, found *Found) error {
	maps := f.Client.CoreV1().ConfigMaps(nodejob.Namespace)
	list, err := maps.List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(nodejob.Labels()).String()})
	if apierrors.IsForbidden(err) {
		found.Notes = append(found.Notes, "you may not list configmaps: records of rollouts were not looked for")
		return nil
	}
	if err != nil {
		return fmt.Errorf("list configmaps: %w", err)
	}
	for i := range list.Items {
		name := list.Items[i].Name
		found.Objects = append(found.Objects, Object{
			Name: "configmap/" + name, What: "in namespace " + nodejob.Namespace,
			removal: func(ctx context.Context) error { return maps.Delete(ctx, name, metav1.DeleteOptions{}) },
		})
	}
	return nil
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
