package nodeswitch

import (
	"errors"
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

	"github.com/kubectl-runtime/kubectl-runtime/pkg/access"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

func TestPreflight(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	names := []string{"pre-free", "pre-claimed", "pre-emptydir"}
	var nodes []corev1.Node
	for _, name := range names {
		s.CreateNodes(t, apiserver.Node(name, dockerVersion, "v1.23.17"))
		nodes = append(nodes, *getNode(t, s, name))
	}
	holdLease(t, s, "pre-claimed", time.Now())
	createPod(t, s, "pre-free", "pre-web")
	createPod(t, s, "pre-emptydir", "pre-cache", func(pod *corev1.Pod) {
		pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	})
	check := func(alone bool, want []string, change ...func(*Options)) {
		t.Helper()
		findings, err := newRollout(s, &recorder{}, change...).Preflight().Switch(t.Context(), nodes, alone)
		if err != nil {
			t.Fatal(err)
		}
		for i, finding := range findings {
			if got := fmt.Sprint(finding.Verdict, " ", finding.Reason, finding.Evict); !strings.Contains(got, want[i]) {
				t.Errorf("%s: %s, want %s", finding.Node, got, want[i])
			}
		}
	}
	check(false, []string{"0 [default/pre-web]", "3 alice@laptop is rolling it back", "--delete-emptydir-data"})
	check(false, []string{"0 [default/pre-web]", "3 alice", "0 [default/pre-cache]"}, func(o *Options) { o.Drain.DeleteEmptyDirData = true })
	check(true, []string{"3 it is the cluster's only node", "3 alice", "--force"})
	check(true, []string{"0 [default/pre-web]", "3 alice", "--delete-emptydir-data"}, func(o *Options) { o.Drain.Force = true })
	if err := s.Client().CoordinationV1().Leases("kubectl-runtime").Delete(t.Context(), "pre-claimed", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

// rules are what Permissions asks for, as RBAC rules; without is left out.
func rules(without string) []rbacv1.PolicyRule {
	var list []rbacv1.PolicyRule
	for _, p := range slices.Concat(access.SwitchPermissions(drain.Options{}, true), access.OpenPermissions()) {
		resource := p.Resource
		if p.Subresource != "" {
			resource += "/" + p.Subresource
		}
		if p.String() != without {
			list = append(list, apiserver.Allow(p.Group, resource, p.Verb))
		}
	}
	return list
}

// maySwitch checks the rights of the switcher's user.
func maySwitch(t *testing.T, r *Switcher) error {
	return (access.Checker{Client: r.client}).CheckSwitch(t.Context(), r.options.Drain)
}

// TestPermissions checks that what the list names is enough for a whole switch, and that what is missing is named.
func TestPermissions(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	keepOpen(t, s)
	as := func(name, without string) (*Switcher, *recorder) {
		config := s.User(t, name, rules(without)...)
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		observer := &recorder{}
		r := newRollout(s, observer)
		r.client, r.claims.Client, r.runner.Client, r.runner.Config = client, client, client, config
		return r, observer
	}
	r, observer := as("enough", "")
	if err := maySwitch(t, r); err != nil {
		t.Fatal(err)
	}
	hollow.New(t, s, "permitted")
	createPod(t, s, "permitted", "permitted-web")
	if _, err := r.Switch(t.Context(), "permitted"); err != nil {
		t.Errorf("a user with these rights: %v", err)
	}
	if !observer.said("exec was not checked") {
		t.Error("it was not said that exec was not checked")
	}

	r, _ = as("lacking", "create jobs.batch -n kubectl-runtime")
	err := maySwitch(t, r)
	var missing *access.PermissionError
	if !errors.As(err, &missing) || err.Error() != "you lack permissions: create jobs.batch -n kubectl-runtime" {
		t.Errorf("error %v", err)
	}
	if err := maySwitch(t, newRollout(s, &recorder{})); err != nil {
		t.Errorf("an administrator: %v", err)
	}
}

func TestPlan(t *testing.T) {
	r := New(Config{Options: Options{
		Image: agentImage, CutoverTimeout: 5 * time.Minute, Soak: 10 * time.Second, Drain: drain.Options{Timeout: 10 * time.Minute},
	}})
	var text strings.Builder
	for _, finding := range []preflight.Finding{
		{Node: "plain", Evict: []string{"default/a", "default/b"}},
		{Node: "cordoned", Cordoned: true},
		{Node: "resumed", Verdict: preflight.Resume, State: nodestate.StateCutover},
	} {
		fmt.Fprintf(&text, "%s\n", finding.Node)
		for i, step := range Plan(r.options, finding) {
			fmt.Fprintf(&text, "  %d. %s\n", i+1, step)
		}
	}
	want, err := os.ReadFile("testdata/plan.txt")
	if err != nil || text.String() != string(want) {
		t.Errorf("error %v, got:\n%s", err, text.String())
	}
}
