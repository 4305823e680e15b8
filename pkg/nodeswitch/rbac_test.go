package nodeswitch

import (
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
	"github.com/kubectl-runtime/kubectl-runtime/test/rights"
)

var update = flag.Bool("update", false, "write docs/rbac.yaml again")

const rbacHead = `# The rights that each command needs, for users who are no administrators: made from the code by
# ` + "`go test ./pkg/nodeswitch -run TestRBAC -update`" + `. Each role is bound to a group: put users into it, or change the subjects.
# Whoever may create pods in namespace kubectl-runtime and change its labels is root on every node: that is switch, rollback and plan-hosts, which is plan
# without --api-only. --disable-eviction needs "delete" of pods in all namespaces, too. No role reads nodes/proxy, by which the kubelet's metrics would be
# checked, since that is a way into every pod.
`

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
		objects = append(objects, rights.Objects(role, group)...)
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

// asRole returns a Switcher of a user with exactly one command's role.
func asRole(t *testing.T, s *apiserver.Server, role access.Role, observer Observer) *Switcher {
	t.Helper()
	user := rights.NewUser(t, s, role)
	r := newRollout(s, observer)
	r.client, r.claims.Client, r.runner.Client, r.runner.Config = user.Client, user.Client, user.Client, user.Config
	return r
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
	// What each command that changes something asks before it does. package plugin has tests of those that only read, and of what is said without a right.
	checks := map[string]func(*Switcher) error{
		"plan-hosts": func(r *Switcher) error { return (access.Checker{Client: r.client}).CheckLook(t.Context()) },
		"switch":     func(r *Switcher) error { return maySwitch(t, r) },
		"rollback":   func(r *Switcher) error { return maySwitch(t, r) },
		"uninstall":  func(r *Switcher) error { return (access.Checker{Client: r.client}).CheckUninstall(t.Context()) },
	}
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
			found, err := finder(t, r).Find(t.Context())
			if err != nil || len(found.Open) > 0 || len(found.Notes) > 0 || len(found.Objects) < 10 {
				return fmt.Errorf("%+v, %w", found, err)
			}
			removed := map[string]bool{}
			err = uninstall.Remove(t.Context(), found, func(o uninstall.Object) { removed[o.Name] = true })
			left := slices.DeleteFunc(found.Objects, func(o uninstall.Object) bool { return removed[o.Name] })
			if slices.ContainsFunc(left, func(o uninstall.Object) bool { return o.Name != "clusterrole/kubectl-runtime-uninstall" }) {
				return fmt.Errorf("left %+v, %w", left, err)
			}
			return nil // who has no other rights than these cannot remove the last of them
		},
	}
	for _, role := range access.Roles() {
		if work[role.Command] == nil {
			continue
		}
		observer := &recorder{}
		r := asRole(t, s, role, observer)
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
