// Package access knows which rights each command needs, and asks the API server whether the user has them. docs/rbac.yaml is made from its roles.
package access

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/jobnamespace"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
)

// reviewsAtOnce bounds how many access reviews are asked for at a time.
const reviewsAtOnce = 8

// Permission is a right in RBAC's words. Namespace is empty for all namespaces and for cluster-wide resources, Name for all objects.
type Permission struct {
	Verb, Group, Resource, Subresource, Namespace, Name string
}

// String is as `kubectl auth can-i` takes it: "create jobs.batch -n kubectl-runtime".
func (p Permission) String() string {
	text := p.Verb + " " + p.Resource
	if p.Group != "" {
		text += "." + p.Group
	}
	if p.Name != "" {
		text += "/" + p.Name
	}
	if p.Subresource != "" {
		text += " --subresource=" + p.Subresource
	}
	if p.Namespace != "" {
		text += " -n " + p.Namespace
	}
	return text
}

// Role is what a command needs.
type Role struct {
	Command string
	// Needed are the rights without which the command refuses to begin. Used are those that it uses where it has them: it says what it goes
	// without.
	Needed, Used []Permission
}

// Roles are those of docs/rbac.yaml, by command. The namespace is there already.
func Roles() []Role {
	plan := Role{Command: "plan", Needed: readPermissions(), Used: planOptional()}
	return []Role{
		{Command: "status", Needed: need("", "nodes", "", "", "get", "list"), Used: need("", "nodes", "", "", "watch")},
		plan,
		{
			Command: "plan-hosts", Needed: slices.Concat(plan.Needed, LookPermissions(true), OpenPermissions()),
			Used: slices.Concat(plan.Used, workloadPermissions(), followPermissions()),
		},
		{Command: "switch", Needed: slices.Concat(SwitchPermissions(drain.Options{}, true), OpenPermissions()), Used: slices.Concat(OptionalPermissions(), planOptional(), workloadPermissions())},
		{Command: "rollback", Needed: slices.Concat(SwitchPermissions(drain.Options{}, true), OpenPermissions()), Used: OptionalPermissions()},
		{Command: "rollout", Needed: rolloutPermissions()},
		{Command: "uninstall", Needed: UninstallPermissions(), Used: uninstallOptional()},
	}
}

// need lists the rights to do several things to a resource.
func need(group, resource, subresource, namespace string, verbs ...string) []Permission {
	var list []Permission
	for _, verb := range verbs {
		list = append(list, Permission{Verb: verb, Group: group, Resource: resource, Subresource: subresource, Namespace: namespace})
	}
	return list
}

// needNamespace lists rights to the program's own namespace. A request for a namespace is one within it, so that a Role can allow it.
func needNamespace(verbs ...string) []Permission {
	list := need("", "namespaces", "", nodejob.Namespace, verbs...)
	for i := range list {
		list[i].Name = nodejob.Namespace
	}
	return list
}

// readPermissions are for the nodes and what a drain would move.
func readPermissions() []Permission {
	return slices.Concat(need("", "nodes", "", "", "get", "list"), need("", "pods", "", "", "list"))
}

// planOptional are for the checks on budgets, volumes and CronJobs.
func planOptional() []Permission {
	return slices.Concat(
		need("policy", "poddisruptionbudgets", "", "", "list"), need("", "persistentvolumes", "", "", "list"),
		need("", "persistentvolumeclaims", "", "", "list"), need("batch", "cronjobs", "", "", "list"),
	)
}

// workloadPermissions are for images that workloads may yet bring to a node.
func workloadPermissions() []Permission {
	return slices.Concat(
		need("apps", "deployments", "", "", "list"), need("apps", "statefulsets", "", "", "list"), need("apps", "daemonsets", "", "", "list"),
		need("batch", "cronjobs", "", "", "list"),
	)
}

// followPermissions are to tell why a pod does not start, and whether one that seems not to have started has not.
func followPermissions() []Permission {
	return slices.Concat(need("", "events", "", nodejob.Namespace, "list"), need("coordination.k8s.io", "leases", "", corev1.NamespaceNodeLease, "get"))
}

// OptionalPermissions are rights that switch and rollback use where they have them: what they cannot do without them they say, or leave out.
// They also ask for nodes/proxy, for the kubelet's metrics; docs/rbac.yaml does not give that, since it is a way into every pod.
func OptionalPermissions() []Permission {
	return slices.Concat(
		// To remove the records of old rollouts.
		need("", "configmaps", "", nodejob.Namespace, "list", "delete"),
		// To learn of a change at once, and not at the next look.
		need("", "pods", "", "", "watch"), need("", "nodes", "", "", "watch"),
		// Which budget holds a pod back; what happened to the node, for the evidence.
		need("policy", "poddisruptionbudgets", "", "", "list"),
		need("", "events", "", metav1.NamespaceDefault, "list"),
		followPermissions(),
		// What the canary proves: exec, by which the host's evidence comes, too; DNS where there is one.
		need("", "pods", "exec", nodejob.Namespace, "create"),
		need("", "services", "", metav1.NamespaceSystem, "get"),
		need("discovery.k8s.io", "endpointslices", "", metav1.NamespaceSystem, "list"), need("", "endpoints", "", metav1.NamespaceSystem, "get"),
	)
}

// rolloutPermissions are for the records of rollouts, and whether their drivers report.
func rolloutPermissions() []Permission {
	own := nodejob.Namespace
	return slices.Concat(need("", "configmaps", "", own, "get", "list", "update"), need("coordination.k8s.io", "leases", "", own, "get"))
}

// UninstallPermissions are the rights that package uninstall needs.
func UninstallPermissions() []Permission {
	own := nodejob.Namespace
	return slices.Concat(
		need("", "nodes", "", "", "list", "patch"), needNamespace("get", "delete"),
		need("coordination.k8s.io", "leases", "", own, "list"), need("", "pods", "", own, "list"),
	)
}

// uninstallOptional are for what docs/*.yaml made, and for what is in a namespace that stays.
func uninstallOptional() []Permission {
	list := need("", "configmaps", "", nodejob.Namespace, "list", "delete")
	for _, resource := range []string{"clusterroles", "clusterrolebindings", "roles", "rolebindings"} {
		list = append(list, need(rbacv1.GroupName, resource, "", "", "list", "delete")...)
	}
	own := nodejob.Namespace
	return slices.Concat(
		list, need("policy", "podsecuritypolicies", "", "", "list", "delete"),
		need("admissionregistration.k8s.io", "validatingadmissionpolicies", "", "", "list", "delete"),
		need("admissionregistration.k8s.io", "validatingadmissionpolicybindings", "", "", "list", "delete"),
		need("batch", "jobs", "", own, "list", "delete"), need("", "pods", "", own, "delete"), need("coordination.k8s.io", "leases", "", own, "delete"),
	)
}

// SwitchPermissions are the rights that a switch needs, beside OptionalPermissions and OpenPermissions.
func SwitchPermissions(options drain.Options, namespaceExists bool) []Permission {
	own := nodejob.Namespace
	removal := need("", "pods", "eviction", "", "create")
	if options.DisableEviction {
		removal = need("", "pods", "", "", "delete")
	}
	return slices.Concat(
		need("", "nodes", "", "", "get", "list", "patch"),
		namespacePermissions(namespaceExists),
		need("coordination.k8s.io", "leases", "", own, "get", "create", "update", "delete"),
		need("", "configmaps", "", own, "get", "create", "update"), // the slots that all rollouts have in common, and their records
		jobPermissions(),
		need("", "pods", "", "", "get"),
		need("", "pods", "", own, "create", "delete"),
		removal,
		need("apps", "daemonsets", "", "", "get"),
	)
}

// LookPermissions are the rights that a look at a host needs, beside OpenPermissions.
func LookPermissions(namespaceExists bool) []Permission {
	return slices.Concat(namespacePermissions(namespaceExists), jobPermissions(), need("", "pods", "", nodejob.Namespace, "get", "delete"))
}

func namespacePermissions(exists bool) []Permission {
	if exists {
		return needNamespace("get")
	}
	return slices.Concat(needNamespace("get"), need("", "namespaces", "", "", "create"))
}

// OpenPermissions are for the labels that let privileged pods into the namespace while a run is open.
func OpenPermissions() []Permission { return needNamespace("patch") }

// jobPermissions are for a Job and what its pod says.
func jobPermissions() []Permission {
	own := nodejob.Namespace
	return slices.Concat(
		need("batch", "jobs", "", own, "get", "list", "create", "delete"),
		need("", "pods", "", "", "list"),
		need("", "pods", "log", own, "get"),
	)
}

// PermissionError names the rights that the user lacks.
type PermissionError struct{ Missing []Permission }

func (e *PermissionError) Error() string {
	names := make([]string, len(e.Missing))
	for i, permission := range e.Missing {
		names[i] = permission.String()
	}
	return "you lack permissions: " + strings.Join(names, ", ")
}

// Checker asks the API server what its user may do.
type Checker struct{ Client kubernetes.Interface }

// CheckSwitch asks the server whether the user may do all that a switch or a rollback needs. What is missing is a *PermissionError.
func (c Checker) CheckSwitch(ctx context.Context, options drain.Options) error {
	return c.check(ctx, func(exists bool) []Permission { return SwitchPermissions(options, exists) })
}

// CheckLook is the same for a look at a host.
func (c Checker) CheckLook(ctx context.Context) error {
	return c.check(ctx, func(exists bool) []Permission { return slices.Concat(readPermissions(), LookPermissions(exists)) })
}

// CheckUninstall asks the server whether the user may remove all. What is missing is a *PermissionError.
func (c Checker) CheckUninstall(ctx context.Context) error {
	if all, err := c.may(ctx, everything); err != nil || all {
		return err
	}
	missing, err := c.Missing(ctx, UninstallPermissions())
	if err == nil && len(missing) > 0 {
		err = &PermissionError{Missing: missing}
	}
	return err
}

// MissingOptional are the rights of a role that a command uses where it has them, and that the user lacks.
func (c Checker) MissingOptional(ctx context.Context, command string) ([]Permission, error) {
	if all, err := c.may(ctx, everything); err != nil || all {
		return nil, err
	}
	i := slices.IndexFunc(Roles(), func(role Role) bool { return role.Command == command })
	return c.Missing(ctx, Roles()[i].Used)
}

// MissingForLook are rights that a look at a host uses where the user has them, beside those of the plan, which reports what it could not read.
func (c Checker) MissingForLook(ctx context.Context) ([]Permission, error) {
	if all, err := c.may(ctx, everything); err != nil || all {
		return nil, err
	}
	return c.Missing(ctx, slices.Concat(workloadPermissions(), followPermissions()))
}

// everything is an administrator's right, which saves asking for each.
var everything = Permission{Verb: "*", Group: "*", Resource: "*"}

func (c Checker) check(ctx context.Context, list func(namespaceExists bool) []Permission) error {
	all, err := c.may(ctx, everything)
	if err != nil || all {
		return err
	}
	namespace, err := c.Client.CoreV1().Namespaces().Get(ctx, nodejob.Namespace, metav1.GetOptions{})
	permissions := list(!apierrors.IsNotFound(err))
	if err != nil || !jobnamespace.IsOpen(namespace) { // it is made closed to privileged pods
		permissions = slices.Concat(permissions, OpenPermissions())
	}
	missing, err := c.Missing(ctx, permissions)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return &PermissionError{Missing: missing}
	}
	return nil
}

// Missing are those of some rights that the user lacks.
func (c Checker) Missing(ctx context.Context, permissions []Permission) ([]Permission, error) {
	allowed := make([]bool, len(permissions))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(reviewsAtOnce)
	for i, permission := range permissions {
		group.Go(func() (err error) {
			allowed[i], err = c.may(groupCtx, permission)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var missing []Permission
	for i, permission := range permissions {
		if !allowed[i] && !slices.Contains(missing, permission) {
			missing = append(missing, permission)
		}
	}
	return missing, nil
}

func (c Checker) may(ctx context.Context, p Permission) (bool, error) {
	review, err := c.Client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: p.Verb, Group: p.Group, Resource: p.Resource, Subresource: p.Subresource, Namespace: p.Namespace, Name: p.Name,
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("ask for permission to %s: %w", p, err)
	}
	return review.Status.Allowed, nil
}
