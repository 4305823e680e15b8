package rollout

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
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

// Permissions are the rights that a switch needs. Exec, the kubelet's metrics and Lease, events and budgets are used
// where they are allowed.
func Permissions(options drain.Options, namespaceExists bool) []Permission {
	own := nodejob.Namespace
	need := func(group, resource, subresource, namespace string, verbs ...string) []Permission {
		var list []Permission
		for _, verb := range verbs {
			list = append(list, Permission{verb, group, resource, subresource, namespace})
		}
		return list
	}
	removal := need("", "pods", "eviction", "", "create")
	if options.DisableEviction {
		removal = need("", "pods", "", "", "delete")
	}
	namespaceVerbs := []string{"get"}
	if !namespaceExists {
		namespaceVerbs = append(namespaceVerbs, "create")
	}
	return slices.Concat(
		need("", "nodes", "", "", "get", "list", "patch"),
		need("", "namespaces", "", "", namespaceVerbs...),
		need("coordination.k8s.io", "leases", "", own, "get", "create", "update", "delete"),
		need("batch", "jobs", "", own, "get", "list", "create", "delete"),
		need("", "pods", "", "", "get", "list"),
		need("", "pods", "", own, "create", "delete"),
		need("", "pods", "log", own, "get"),
		removal,
		need("apps", "daemonsets", "", "", "get"),
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
	all, err := r.may(ctx, Permission{Verb: "*", Group: "*", Resource: "*"})
	if err != nil || all {
		return err
	}
	_, err = r.client.CoreV1().Namespaces().Get(ctx, nodejob.Namespace, metav1.GetOptions{})
	permissions := Permissions(r.options.Drain, !apierrors.IsNotFound(err))
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
