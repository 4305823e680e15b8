package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

const rbacGroup = "rbac.authorization.k8s.io"

// UninstallPermissions are the rights that FindInstalled and Remove need.
func UninstallPermissions() []Permission {
	own := nodejob.Namespace
	return slices.Concat(
		need("", "nodes", "", "", "list", "patch"), needNamespace("get", "delete"),
		need("coordination.k8s.io", "leases", "", own, "list"), need("", "pods", "", own, "list"),
	)
}

// uninstallOptional are for what docs/rbac.yaml made.
func uninstallOptional() []Permission {
	var list []Permission
	for _, resource := range []string{"clusterroles", "clusterrolebindings", "roles", "rolebindings"} {
		list = append(list, need(rbacGroup, resource, "", "", "list", "delete")...)
	}
	return list
}

// Installed is one object that this program made in the cluster, or made an entry in.
type Installed struct {
	// Name is as kubectl has it: "namespace/kubectl-runtime".
	Name string
	// What says what is removed, where that is not the object itself.
	What   string
	remove func(context.Context) error
}

// Inventory is all that this program left in the cluster.
type Inventory struct {
	Objects []Installed
	// Open says which runs are open, a sentence each: nothing may be removed then.
	Open []string
	// Notes say what was not looked at, or stays.
	Notes []string
}

// CheckUninstallPermissions asks the server whether the user may remove all. What is missing is a *PermissionError.
func (r *Switcher) CheckUninstallPermissions(ctx context.Context) error {
	if all, err := r.may(ctx, everything); err != nil || all {
		return err
	}
	missing, err := r.missing(ctx, UninstallPermissions())
	if err == nil && len(missing) > 0 {
		err = &PermissionError{Missing: missing}
	}
	return err
}

// FindInstalled lists what this program left in the cluster, in the order in which it is removed. It changes nothing.
func (r *Switcher) FindInstalled(ctx context.Context) (*Inventory, error) {
	found := &Inventory{}
	for _, look := range []func(context.Context, *Inventory) error{r.findNodes, r.findRoles, r.findNamespace} {
		if err := look(ctx, found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// Remove removes one object. One that is gone already is no error.
func (i Installed) Remove(ctx context.Context) error {
	if err := i.remove(ctx); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove %s: %w", i.Name, err)
	}
	return nil
}

// findNodes lists nodes with annotations of this program, and those whose run is open.
func (r *Switcher) findNodes(ctx context.Context, found *Inventory) error {
	for options := (metav1.ListOptions{Limit: 500}); ; {
		nodes, err := r.client.CoreV1().Nodes().List(ctx, options)
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
			found.Objects = append(found.Objects, Installed{
				Name: "node/" + node.Name, What: fmt.Sprintf("%d annotations", len(own)),
				remove: func(ctx context.Context) error { return nodestate.Forget(ctx, r.client, node.Name, own) },
			})
		}
		if options.Continue = nodes.Continue; options.Continue == "" {
			return nil
		}
	}
}

// findRoles lists the roles and bindings of docs/rbac.yaml, by their labels. Those in the program's own namespace go with it.
func (r *Switcher) findRoles(ctx context.Context, found *Inventory) error {
	api, options := r.client.RbacV1(), metav1.ListOptions{LabelSelector: labels.SelectorFromSet(nodejob.Labels()).String()}
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
			found.Notes = append(found.Notes, fmt.Sprintf("you may not list %ss.%s: those of docs/rbac.yaml were not looked for", kind.name, rbacGroup))
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
			found.Objects = append(found.Objects, Installed{Name: kind.name + "/" + object.GetName(), What: where, remove: func(ctx context.Context) error {
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
func (r *Switcher) findNamespace(ctx context.Context, found *Inventory) error {
	namespaces, own := r.client.CoreV1().Namespaces(), nodejob.Namespace
	namespace, err := namespaces.Get(ctx, own, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get namespace %s: %w", own, err)
	}
	leases, err := r.client.CoordinationV1().Leases(own).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for i := range leases.Items {
		if other := claim.Foreign(&leases.Items[i], r.holder); other != nil && r.clock.Now().Before(other.Until) {
			found.Open = append(found.Open, fmt.Sprintf("node %s: %s", leases.Items[i].Name, other))
		}
	}
	if _, looks := r.openRuns(namespace, ""); looks > 0 {
		found.Open = append(found.Open, fmt.Sprintf("%d looks at hosts", looks))
	}
	pods, err := r.client.CoreV1().Pods(own).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	foreign := ""
	for i := range pods.Items {
		if !labels.SelectorFromSet(nodejob.Labels()).Matches(labels.Set(pods.Items[i].Labels)) {
			foreign = pods.Items[i].Name
		}
	}
	switch {
	case namespace.Labels[nodejob.LabelManagedBy] != nodejob.Labels()[nodejob.LabelManagedBy]:
		found.Notes = append(found.Notes, fmt.Sprintf("namespace %s stays: kubectl runtime did not make it", own))
		return nil
	case foreign != "":
		found.Notes = append(found.Notes, fmt.Sprintf("namespace %s stays: pod %s in it is not kubectl runtime's", own, foreign))
		return nil
	}
	uid := namespace.UID
	found.Objects = append(found.Objects, Installed{Name: "namespace/" + own, What: "with all in it", remove: func(ctx context.Context) error {
		return namespaces.Delete(ctx, own, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	}})
	return nil
}

// RemoveInstalled removes what FindInstalled found, and says so after each. It goes on after an error.
func RemoveInstalled(ctx context.Context, found *Inventory, done func(Installed)) error {
	var errs []error
	for _, object := range found.Objects {
		if err := object.Remove(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		done(object)
	}
	return errors.Join(errs...)
}
