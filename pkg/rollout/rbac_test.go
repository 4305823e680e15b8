package rollout

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
)

var update = flag.Bool("update", false, "write docs/rbac.yaml anew")

const rbacHead = `# What it takes to run kubectl runtime switch and rollback, for who is no administrator: made from the code by
# ` + "`go test ./pkg/rollout -run TestRBAC -update`" + `. Bind the ClusterRole with a ClusterRoleBinding and each Role with a RoleBinding.
# Who may create privileged pods in a namespace is root on every node. --disable-eviction needs "delete" of pods in all namespaces, too.
`

// rulesOf makes rules of the permissions in one namespace, or of those for all.
func rulesOf(permissions []Permission, namespace string) []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	for _, p := range permissions {
		if p.Namespace != namespace {
			continue
		}
		resource := strings.TrimSuffix(p.Resource+"/"+p.Subresource, "/")
		i := slices.IndexFunc(rules, func(rule rbacv1.PolicyRule) bool {
			return rule.APIGroups[0] == p.Group && rule.Resources[0] == resource
		})
		if i < 0 {
			rules = append(rules, rbacv1.PolicyRule{APIGroups: []string{p.Group}, Resources: []string{resource}, Verbs: []string{p.Verb}})
		} else if !slices.Contains(rules[i].Verbs, p.Verb) {
			rules[i].Verbs = append(rules[i].Verbs, p.Verb)
		}
	}
	return rules
}

// rbac are namespace, ClusterRole and Roles for all rights, needed ones and those that are used where they are allowed.
func rbac() (*corev1.Namespace, *rbacv1.ClusterRole, []*rbacv1.Role) {
	permissions := slices.Concat(Permissions(drain.Options{}, false), []Permission{{Verb: "patch", Resource: "namespaces"}}, OptionalPermissions())
	namespace := &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: nodejob.Namespace, Labels: nodejob.Labels()},
	}
	for _, label := range podSecurityLabels {
		namespace.Labels[label] = "privileged"
	}
	cluster := &rbacv1.ClusterRole{
		TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "ClusterRole"},
		ObjectMeta: metav1.ObjectMeta{Name: "kubectl-runtime", Labels: nodejob.Labels()}, Rules: rulesOf(permissions, ""),
	}
	var roles []*rbacv1.Role
	for _, p := range permissions {
		if p.Namespace == "" || slices.ContainsFunc(roles, func(role *rbacv1.Role) bool { return role.Namespace == p.Namespace }) {
			continue
		}
		roles = append(roles, &rbacv1.Role{
			TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "Role"},
			ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: "kubectl-runtime", Labels: nodejob.Labels()}, Rules: rulesOf(permissions, p.Namespace),
		})
	}
	return namespace, cluster, roles
}

func TestRBAC(t *testing.T) {
	namespace, cluster, roles := rbac()
	objects := []any{namespace, cluster}
	for _, role := range roles {
		objects = append(objects, role)
	}
	text := rbacHead
	for _, object := range objects {
		data, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		text += "---\n" + strings.ReplaceAll(string(data), "spec: {}\nstatus: {}\n", "")
	}
	const file = "../../docs/rbac.yaml"
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != text {
		t.Errorf("docs/rbac.yaml is not what the code needs (%v): run the test with -update and look at the diff", err)
	}
}

// TestRBACIsEnough switches a node with the rights of docs/rbac.yaml.
func TestRBACIsEnough(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	if err := newRollout(s, &recorder{}).ensureNamespace(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, cluster, roles := rbac()
	const user = "switcher"
	config := s.User(t, user, cluster.Rules...)
	subjects := []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}}
	api, ctx := s.Client().RbacV1(), context.Background()
	for _, role := range roles {
		_, err := api.Roles(role.Namespace).Create(ctx, role, metav1.CreateOptions{})
		if err == nil {
			_, err = api.RoleBindings(role.Namespace).Create(ctx, &rbacv1.RoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: role.Name}, Subjects: subjects,
				RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
			}, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			err := errors.Join(api.RoleBindings(role.Namespace).Delete(ctx, role.Name, metav1.DeleteOptions{}), api.Roles(role.Namespace).Delete(ctx, role.Name, metav1.DeleteOptions{}))
			if err != nil {
				t.Error(err)
			}
		})
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	observer := &recorder{}
	r := newRollout(s, observer)
	r.client, r.runner.Client, r.runner.Config = client, client, config
	if err := r.CheckPermissions(t.Context()); err != nil {
		t.Fatal(err)
	}
	newHollow(t, s, "switched-by-role")
	createPod(t, s, "switched-by-role", "by-role")
	report, err := r.Switch(t.Context(), "switched-by-role")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"you may not", "forbidden"} {
		if strings.Contains(fmt.Sprint(report.Warnings), text) {
			t.Errorf("warnings %q", report.Warnings)
		}
	}
}
