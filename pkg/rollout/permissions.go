package rollout

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
)

// reviewsAtOnce bounds how many access reviews are asked for at a time.
const reviewsAtOnce = 8

// Permission is a right in RBAC's words. Namespace is empty for all namespaces and for cluster-wide resources.
type Permission struct {
	Verb, Group, Resource, Subresource, Namespace string
}

// String is as `kubectl auth can-i` takes it: "create jobs.batch -n kubectl-runtime".
func (p Permission) String() string {
	text := p.Verb + " " + p.Resource
	if p.Group != "" {
		text += "." + p.Group
	}
	if p.Subresource != "" {
		text += "/" + p.Subresource
	}
	if p.Namespace != "" {
		text += " -n " + p.Namespace
	}
	return text
}

// need lists the rights to do several things to a resource.
func need(group, resource, subresource, namespace string, verbs ...string) []Permission {
	var list []Permission
	for _, verb := range verbs {
		list = append(list, Permission{verb, group, resource, subresource, namespace})
	}
	return list
}

// OptionalPermissions are rights that a switch uses where it has them: what it cannot do without them it says, or leaves out.
func OptionalPermissions() []Permission {
	return []Permission{
		// Images that workloads may yet bring to a node.
		{"list", "apps", "deployments", "", ""},
		{"list", "apps", "statefulsets", "", ""},
		{"list", "apps", "daemonsets", "", ""},
		{"list", "batch", "cronjobs", "", ""},
		// The checks on volumes that plan makes and switch repeats.
		{"list", "", "persistentvolumes", "", ""},
		{"list", "", "persistentvolumeclaims", "", ""},
		// To learn of a change at once, and not at the next look.
		{"watch", "", "pods", "", ""},
		{"watch", "", "nodes", "", ""},
		// Which budget holds a pod back, and why a pod does not start.
		{"list", "policy", "poddisruptionbudgets", "", ""},
		{"list", "", "events", "", ""},
		// What the canary proves: exec, by which the host's evidence comes, too; the kubelet's metrics, DNS where there is one.
		{"create", "", "pods", "exec", nodejob.Namespace},
		{"get", "", "nodes", "proxy", ""},
		{"get", "", "services", "", metav1.NamespaceSystem},
		{"list", "discovery.k8s.io", "endpointslices", "", metav1.NamespaceSystem},
		// Whether a pod that seems not to have started has not.
		{"get", "coordination.k8s.io", "leases", "", corev1.NamespaceNodeLease},
	}
}

// Permissions are the rights that a switch needs, beside OptionalPermissions.
func Permissions(options drain.Options, namespaceExists bool) []Permission {
	own := nodejob.Namespace
	removal := need("", "pods", "eviction", "", "create")
	if options.DisableEviction {
		removal = need("", "pods", "", "", "delete")
	}
	return slices.Concat(
		need("", "nodes", "", "", "get", "list", "patch"),
		namespacePermissions(namespaceExists),
		need("coordination.k8s.io", "leases", "", own, "get", "create", "update", "delete"),
		jobPermissions(),
		need("", "pods", "", own, "create", "delete"),
		removal,
		need("apps", "daemonsets", "", "", "get"),
	)
}

// LookPermissions are the rights that LookAtHost needs.
func LookPermissions(namespaceExists bool) []Permission {
	return slices.Concat(namespacePermissions(namespaceExists), jobPermissions())
}

func namespacePermissions(exists bool) []Permission {
	if exists {
		return need("", "namespaces", "", "", "get")
	}
	return need("", "namespaces", "", "", "get", "create")
}

// jobPermissions are for a Job and what its pod says.
func jobPermissions() []Permission {
	own := nodejob.Namespace
	return slices.Concat(
		need("batch", "jobs", "", own, "get", "list", "create", "delete"),
		need("", "pods", "", "", "get", "list"),
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

// CheckPermissions asks the server whether the user may do all that a switch needs. What is missing is a *PermissionError.
func (r *Rollout) CheckPermissions(ctx context.Context) error {
	return r.checkPermissions(ctx, func(exists bool) []Permission { return Permissions(r.options.Drain, exists) })
}

// CheckLookPermissions is the same for LookAtHost.
func (r *Rollout) CheckLookPermissions(ctx context.Context) error {
	return r.checkPermissions(ctx, LookPermissions)
}

func (r *Rollout) checkPermissions(ctx context.Context, list func(namespaceExists bool) []Permission) error {
	all, err := r.may(ctx, Permission{Verb: "*", Group: "*", Resource: "*"})
	if err != nil || all {
		return err
	}
	namespace, err := r.client.CoreV1().Namespaces().Get(ctx, nodejob.Namespace, metav1.GetOptions{})
	permissions := list(!apierrors.IsNotFound(err))
	if err == nil && len(missingLabels(namespace)) > 0 {
		permissions = append(permissions, Permission{Verb: "patch", Resource: "namespaces"})
	}
	allowed := make([]bool, len(permissions))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(reviewsAtOnce)
	for i, permission := range permissions {
		group.Go(func() (err error) {
			allowed[i], err = r.may(groupCtx, permission)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	var missing []Permission
	for i, permission := range permissions {
		if !allowed[i] {
			missing = append(missing, permission)
		}
	}
	if len(missing) > 0 {
		return &PermissionError{Missing: missing}
	}
	return nil
}

func (r *Rollout) may(ctx context.Context, p Permission) (bool, error) {
	review, err := r.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: p.Verb, Group: p.Group, Resource: p.Resource, Subresource: p.Subresource, Namespace: p.Namespace,
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("ask for permission to %s: %w", p, err)
	}
	return review.Status.Allowed, nil
}
