package nodeswitch

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	"sigs.k8s.io/yaml"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/access"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/jobnamespace"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rollout"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rolloutrecord"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/uninstall"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

var update = flag.Bool("update", false, "write docs/rbac.yaml again")

const rbacHead = `# The rights that each command needs, for users who are no administrators: made from the code by
# ` + "`go test ./pkg/nodeswitch -run TestRBAC -update`" + `. Each role is bound to a group: put users into it, or change the subjects.
# Whoever may create pods in namespace kubectl-runtime and change its labels is root on every node: that is switch, rollback and plan-hosts, which is plan
# without --api-only. --disable-eviction needs "delete" of pods in all namespaces, too. No role reads nodes/proxy, by which the kubelet's metrics would be
# checked, since that is a way into every pod.
`

// roleObjects are ClusterRole, Roles and bindings of one command; rules for all namespaces come first.
func roleObjects(role access.Role, subject rbacv1.Subject) (objects []any) {
	permissions := slices.Concat(role.Needed, role.Used)
	name := "kubectl-runtime-" + role.Command
	meta := func(namespace string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: nodejob.Labels()}
	}
	version, subjects := rbacv1.SchemeGroupVersion.String(), []rbacv1.Subject{subject}
	objects = append(
		objects,
		&rbacv1.ClusterRole{TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: "ClusterRole"}, ObjectMeta: meta(""), Rules: rulesOf(permissions, "")},
		&rbacv1.ClusterRoleBinding{
			TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: "ClusterRoleBinding"}, ObjectMeta: meta(""), Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		},
	)
	var namespaces []string
	for _, p := range permissions {
		if p.Namespace == "" || slices.Contains(namespaces, p.Namespace) {
			continue
		}
		namespaces = append(namespaces, p.Namespace)
		objects = append(
			objects,
			&rbacv1.Role{TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: "Role"}, ObjectMeta: meta(p.Namespace), Rules: rulesOf(permissions, p.Namespace)},
			&rbacv1.RoleBinding{
				TypeMeta: metav1.TypeMeta{APIVersion: version, Kind: "RoleBinding"}, ObjectMeta: meta(p.Namespace), Subjects: subjects,
				RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			},
		)
	}
	return objects
}

// rulesOf makes rules of the permissions in one namespace, or of those for all.
func rulesOf(permissions []access.Permission, namespace string) []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	for _, p := range permissions {
		if p.Namespace != namespace {
			continue
		}
		resource, names := strings.TrimSuffix(p.Resource+"/"+p.Subresource, "/"), []string(nil)
		if p.Name != "" {
			names = []string{p.Name}
		}
		i := slices.IndexFunc(rules, func(rule rbacv1.PolicyRule) bool {
			return rule.APIGroups[0] == p.Group && rule.Resources[0] == resource && slices.Equal(rule.ResourceNames, names)
		})
		if i < 0 {
			rules = append(rules, rbacv1.PolicyRule{APIGroups: []string{p.Group}, Resources: []string{resource}, ResourceNames: names, Verbs: []string{p.Verb}})
		} else if !slices.Contains(rules[i].Verbs, p.Verb) {
			rules[i].Verbs = append(rules[i].Verbs, p.Verb)
		}
	}
	return rules
}

func TestRBAC(t *testing.T) {
	namespace := &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: nodejob.Namespace, Labels: nodejob.Labels()},
	}
	for _, label := range jobnamespace.PodSecurityLabels {
		namespace.Labels[label] = jobnamespace.Restricted
	}
	objects := []any{namespace}
	for _, role := range access.Roles() {
		group := rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "kubectl-runtime:" + role.Command}
		objects = append(objects, roleObjects(role, group)...)
	}
	text := rbacHead
	for _, object := range objects {
		data, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		text += "---\n" + strings.ReplaceAll(string(data), "spec: {}\nstatus: {}\n", "")
	}
	if strings.Contains(text, "nodes/proxy\n") {
		t.Error("a role reads nodes/proxy")
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

// asRole returns a Switcher of a user with exactly one command's role, and the role's objects.
func asRole(t *testing.T, s *apiserver.Server, role access.Role, observer Observer) (*Switcher, []any) {
	t.Helper()
	user := "user-of-" + role.Command
	config := s.User(t, user)
	objects := roleObjects(role, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user})
	api, ctx := s.Client().RbacV1(), context.Background()
	for _, object := range objects {
		var err error
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
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	r := newRollout(s, observer)
	r.client, r.claims.Client, r.runner.Client, r.runner.Config = client, client, client, config
	waitMissing(t, r, role, nil)
	return r, objects
}

// waitMissing waits until the server knows what a user lacks of a role.
func waitMissing(t *testing.T, r *Switcher, role access.Role, want []access.Permission) {
	t.Helper()
	var got []access.Permission
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var err error
		if got, err = (access.Checker{Client: r.client}).Missing(t.Context(), slices.Concat(role.Needed, role.Used)); err != nil {
			t.Fatal(err)
		}
		if slices.Equal(got, want) {
			return
		}
	}
	t.Fatalf("%s: lacks %v, want %v", role.Command, got, want)
}

// without updates the objects of a role so that one right is missing; with the zero Permission, none is.
func without(t *testing.T, s *apiserver.Server, role access.Role, gone access.Permission) {
	t.Helper()
	left := slices.DeleteFunc(slices.Concat(role.Needed, role.Used), func(p access.Permission) bool { return p == gone })
	for _, object := range roleObjects(role, rbacv1.Subject{}) {
		var err error
		switch o := object.(type) {
		case *rbacv1.ClusterRole:
			o.Rules = rulesOf(left, "")
			_, err = s.Client().RbacV1().ClusterRoles().Update(context.Background(), o, metav1.UpdateOptions{})
		case *rbacv1.Role:
			o.Rules = rulesOf(left, o.Namespace)
			_, err = s.Client().RbacV1().Roles(o.Namespace).Update(context.Background(), o, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// roleChecks are what each command that changes something asks before it does. pkg/plugin runs those that only read.
func roleChecks(t *testing.T) map[string]func(*Switcher) error {
	return map[string]func(*Switcher) error{
		"plan-hosts": func(r *Switcher) error { return (access.Checker{Client: r.client}).CheckLook(t.Context()) },
		"switch":     func(r *Switcher) error { return maySwitch(t, r) },
		"rollback":   func(r *Switcher) error { return maySwitch(t, r) },
		"uninstall":  func(r *Switcher) error { return (access.Checker{Client: r.client}).CheckUninstall(t.Context()) },
	}
}

// TestRBACIsEnough runs each command that changes something with exactly the rights of its role.
func TestRBACIsEnough(t *testing.T) {
	t.Parallel()
	s := apiserver.Own(t, apiserver.Version())
	if _, err := newRollout(s, &recorder{}).namespaces().Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	hollow.New(t, s, "by-role")
	createPod(t, s, "by-role", "by-role")
	checks := roleChecks(t)
	work := map[string]func(*Switcher) error{
		"rollout": func(r *Switcher) error {
			admin := rolloutrecord.Store{Client: s.Client(), Clock: clock.RealClock{}}
			d, err := admin.Create(t.Context(), rolloutrecord.Spec{Operation: "switch", Selection: []string{"--all=true"}}, "alice@laptop/1", func(string) {})
			if err != nil {
				return err
			}
			store := rolloutrecord.Store{Client: r.client, Clock: r.clock}
			_, _, err = store.List(t.Context())
			_, pauseErr := store.Control(t.Context(), d.Name, "bob@desk", rolloutrecord.Pause)
			return errors.Join(err, pauseErr, d.End(t.Context(), rollout.Summary{}, false))
		},
		"plan-hosts": func(r *Switcher) error { _, err := r.LookAtHost(t.Context(), "by-role"); return err },
		"switch":     func(r *Switcher) error { _, err := r.Switch(t.Context(), "by-role"); return err },
		"rollback":   func(r *Switcher) error { _, err := r.Rollback(t.Context(), "by-role"); return err },
		"uninstall": func(r *Switcher) error {
			found, err := finder(r).Find(t.Context())
			if err != nil || len(found.Open) > 0 || len(found.Notes) > 0 || len(found.Objects) < 10 {
				return fmt.Errorf("%+v, %w", found, err)
			}
			found.Objects = slices.DeleteFunc(found.Objects, func(o uninstall.Object) bool {
				return strings.HasPrefix(o.Name, "cluster") || strings.HasPrefix(o.Name, "role")
			})
			return uninstall.Remove(t.Context(), found, func(uninstall.Object) {})
		},
	}
	for _, role := range access.Roles() {
		if work[role.Command] == nil {
			continue
		}
		observer := &recorder{}
		r, _ := asRole(t, s, role, observer)
		if check := checks[role.Command]; check != nil {
			if err := check(r); err != nil {
				t.Errorf("%s: %v", role.Command, err)
			}
		}
		if err := work[role.Command](r); err != nil {
			t.Errorf("%s: %v", role.Command, err)
		}
		for _, update := range observer.updates {
			for _, text := range []string{"you may not", "forbidden"} {
				if strings.Contains(update.Text, text) && !strings.Contains(update.Text, "nodes/proxy") {
					t.Errorf("%s: %s", role.Command, update.Text)
				}
			}
		}
	}
}

// TestRBACIsNeeded takes away one right after the other: the command names the one that is missing before it changes anything.
func TestRBACIsNeeded(t *testing.T) {
	t.Parallel()
	s := apiserver.Own(t, apiserver.Version())
	if _, err := newRollout(s, &recorder{}).namespaces().Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	checks := roleChecks(t)
	for _, role := range access.Roles() {
		check := checks[role.Command]
		if check == nil {
			continue
		}
		r, _ := asRole(t, s, role, &recorder{})
		var all []access.Permission
		for _, p := range slices.Concat(role.Needed, role.Used) {
			if !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
		for _, p := range all {
			without(t, s, role, p)
			waitMissing(t, r, role, []access.Permission{p})
			if err := check(r); slices.Contains(role.Needed, p) && (err == nil || err.Error() != "you lack permissions: "+p.String()) {
				t.Errorf("%s without the right to %s: %v", role.Command, p, err)
			}
			if missing, err := (access.Checker{Client: r.client}).MissingOptional(t.Context(), role.Command); slices.Contains(role.Used, p) && (err != nil || !slices.Equal(missing, []access.Permission{p})) {
				t.Errorf("%s without the right to %s, which it uses where it has it: %v, %v", role.Command, p, missing, err)
			}
		}
	}
}
