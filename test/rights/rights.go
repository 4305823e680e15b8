// Package rights makes the RBAC objects of a command's role, of which docs/rbac.yaml is made, and users of a test's API server who have exactly the rights of
// one, or all but one of them.
package rights

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/access"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// All are the rights of a role, each once.
func All(role access.Role) []access.Permission {
	var all []access.Permission
	for _, p := range slices.Concat(role.Needed, role.Used) {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}

// Objects are ClusterRole, Roles and bindings of a role with all its rights; rules for all namespaces come first.
func Objects(role access.Role, subject rbacv1.Subject) []any {
	return objects(role, subject, All(role))
}

// objects are those of a role where only some of its rights are left.
func objects(role access.Role, subject rbacv1.Subject, left []access.Permission) (list []any) {
	name := "kubectl-runtime-" + role.Command
	meta := func(namespace string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: nodejob.Labels()}
	}
	version, subjects := rbacv1.SchemeGroupVersion.String(), []rbacv1.Subject{subject}
	list = append(
		list,
		&rbacv1.ClusterRole{TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: "ClusterRole"}, ObjectMeta: meta(""), Rules: rules(left, "")},
		&rbacv1.ClusterRoleBinding{
			TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: "ClusterRoleBinding"}, ObjectMeta: meta(""), Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		},
	)
	var namespaces []string
	for _, p := range All(role) {
		if p.Namespace == "" || slices.Contains(namespaces, p.Namespace) {
			continue
		}
		namespaces = append(namespaces, p.Namespace)
		list = append(
			list,
			&rbacv1.Role{TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: "Role"}, ObjectMeta: meta(p.Namespace), Rules: rules(left, p.Namespace)},
			&rbacv1.RoleBinding{
				TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: "RoleBinding"}, ObjectMeta: meta(p.Namespace), Subjects: subjects,
				RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			},
		)
	}
	return list
}

// rules are those of the rights in one namespace, or of those for all.
func rules(permissions []access.Permission, namespace string) []rbacv1.PolicyRule {
	var list []rbacv1.PolicyRule
	for _, p := range permissions {
		if p.Namespace != namespace {
			continue
		}
		resource, names := strings.TrimSuffix(p.Resource+"/"+p.Subresource, "/"), []string(nil)
		if p.Name != "" {
			names = []string{p.Name}
		}
		i := slices.IndexFunc(list, func(rule rbacv1.PolicyRule) bool {
			return rule.APIGroups[0] == p.Group && rule.Resources[0] == resource && slices.Equal(rule.ResourceNames, names)
		})
		if i < 0 {
			list = append(list, rbacv1.PolicyRule{APIGroups: []string{p.Group}, Resources: []string{resource}, ResourceNames: names, Verbs: []string{p.Verb}})
		} else if !slices.Contains(list[i].Verbs, p.Verb) {
			list[i].Verbs = append(list[i].Verbs, p.Verb)
		}
	}
	return list
}

// User is a user of an API server with the rights of one role.
type User struct {
	Config *rest.Config
	// Client is the user's.
	Client kubernetes.Interface

	t      *testing.T
	server *apiserver.Server
	role   access.Role
}

// NewUser makes a user with all rights of a role. The program's namespace has to be there.
func NewUser(t *testing.T, s *apiserver.Server, role access.Role) *User {
	t.Helper()
	name := "user-of-" + role.Command
	u := &User{t: t, server: s, role: role, Config: s.User(t, name)}
	var err error
	if u.Client, err = kubernetes.NewForConfig(u.Config); err != nil {
		t.Fatal(err)
	}
	api, ctx := s.Client().RbacV1(), context.Background()
	for _, object := range Objects(role, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: name}) {
		switch o := object.(type) {
		case *rbacv1.ClusterRole:
			_, err = api.ClusterRoles().Create(ctx, o, metav1.CreateOptions{})
		case *rbacv1.ClusterRoleBinding:
			_, err = api.ClusterRoleBindings().Create(ctx, o, metav1.CreateOptions{})
		case *rbacv1.Role:
			_, err = api.Roles(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		case *rbacv1.RoleBinding:
			_, err = api.RoleBindings(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	u.awaitMissing(nil)
	return u
}

// Without takes one right away, and gives back what was taken away before.
func (u *User) Without(gone access.Permission) {
	u.t.Helper()
	left := slices.DeleteFunc(All(u.role), func(p access.Permission) bool { return p == gone })
	api, ctx := u.server.Client().RbacV1(), context.Background()
	for _, object := range objects(u.role, rbacv1.Subject{}, left) {
		var err error
		switch o := object.(type) {
		case *rbacv1.ClusterRole:
			_, err = api.ClusterRoles().Update(ctx, o, metav1.UpdateOptions{})
		case *rbacv1.Role:
			_, err = api.Roles(o.Namespace).Update(ctx, o, metav1.UpdateOptions{})
		}
		if err != nil {
			u.t.Fatal(err)
		}
	}
	u.awaitMissing([]access.Permission{gone})
}

// awaitMissing waits until the server knows what the user lacks of the role.
func (u *User) awaitMissing(want []access.Permission) {
	u.t.Helper()
	var got []access.Permission
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var err error
		if got, err = (access.Checker{Client: u.Client}).Missing(u.t.Context(), All(u.role)); err != nil {
			u.t.Fatal(err)
		}
		if slices.Equal(got, want) {
			return
		}
	}
	u.t.Fatalf("%s: lacks %v, want %v", u.role.Command, got, want)
}
