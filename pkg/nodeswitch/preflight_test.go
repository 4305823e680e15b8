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

	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

func annotated(pairs ...string) func(*corev1.Node) {
	return func(node *corev1.Node) {
		for i := 0; i < len(pairs); i += 2 {
			node.Annotations[pairs[i]] = pairs[i+1]
		}
	}
}

func notReady(node *corev1.Node) { node.Status.Conditions[0].Status = corev1.ConditionFalse }

func tainted(key string) func(*corev1.Node) {
	return func(node *corev1.Node) {
		node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
	}
}

func TestJudge(t *testing.T) {
	for _, test := range []struct {
		name    string
		runtime string
		change  []func(*corev1.Node)
		verdict Verdict
		reason  string
	}{
		{name: "docker", runtime: dockerVersion, verdict: Go},
		{name: "containerd", runtime: containerdVersion, verdict: Skip, reason: "already on " + containerdVersion},
		{name: "containerd-on-kops", runtime: containerdVersion, change: []func(*corev1.Node){func(n *corev1.Node) { n.Labels["kops.k8s.io/instancegroup"] = "a" }}, verdict: Skip},
		{name: "kops", runtime: dockerVersion, change: []func(*corev1.Node){func(n *corev1.Node) { n.Labels["kops.k8s.io/instancegroup"] = "a" }}, verdict: Refuse, reason: "replace the node"},
		{name: "windows", runtime: dockerVersion, change: []func(*corev1.Node){func(n *corev1.Node) { n.Status.NodeInfo.OperatingSystem = "windows" }}, verdict: Refuse, reason: "Windows"},
		{name: "cri-o", runtime: "cri-o://1.30.0", verdict: Refuse, reason: "only nodes on Docker"},
		{name: "no-runtime", runtime: "", verdict: Refuse, reason: "does not report a runtime"},
		{name: "not-ready", runtime: dockerVersion, change: []func(*corev1.Node){notReady}, verdict: Refuse, reason: "not Ready"},
		{name: "deleted", runtime: dockerVersion, change: []func(*corev1.Node){func(n *corev1.Node) { n.DeletionTimestamp = &metav1.Time{Time: time.Now()} }}, verdict: Refuse, reason: "being deleted"},
		{name: "autoscaled", runtime: dockerVersion, change: []func(*corev1.Node){tainted("ToBeDeletedByClusterAutoscaler")}, verdict: Refuse, reason: "autoscaler"},
		{name: "karpenter", runtime: dockerVersion, change: []func(*corev1.Node){tainted("karpenter.sh/disrupted")}, verdict: Refuse, reason: "karpenter.sh/disrupted"},
		{name: "candidate", runtime: dockerVersion, change: []func(*corev1.Node){tainted("DeletionCandidateOfClusterAutoscaler")}, verdict: Go},
		{name: "deleted-in-cutover", runtime: dockerVersion, change: []func(*corev1.Node){tainted("karpenter.sh/disrupted"), annotated(nodestate.AnnotationPhase, "cutover", nodestate.AnnotationRun, "r")}, verdict: Resume},
		{name: "prepared", runtime: dockerVersion, change: []func(*corev1.Node){annotated(nodestate.AnnotationPhase, "prepared", nodestate.AnnotationRun, "r")}, verdict: Resume, reason: "prepared"},
		{name: "prepared-not-ready", runtime: dockerVersion, change: []func(*corev1.Node){notReady, annotated(nodestate.AnnotationPhase, "prepared", nodestate.AnnotationRun, "r")}, verdict: Refuse, reason: "not Ready"},
		{name: "cutover-not-ready", runtime: dockerVersion, change: []func(*corev1.Node){notReady, annotated(nodestate.AnnotationPhase, "cutover", nodestate.AnnotationRun, "r")}, verdict: Resume},
		{name: "verifying-on-containerd", runtime: containerdVersion, change: []func(*corev1.Node){annotated(nodestate.AnnotationPhase, "verifying", nodestate.AnnotationRun, "r")}, verdict: Resume},
		{name: "done", runtime: containerdVersion, change: []func(*corev1.Node){annotated(nodestate.AnnotationPhase, "done", nodestate.AnnotationRun, "r")}, verdict: Skip},
		{name: "rolled-back", runtime: dockerVersion, change: []func(*corev1.Node){annotated(nodestate.AnnotationPhase, "rolled-back", nodestate.AnnotationRun, "r")}, verdict: Go},
		{name: "broken", runtime: dockerVersion, change: []func(*corev1.Node){annotated(nodestate.AnnotationPhase, "broken", nodestate.AnnotationMessage, "no runtime starts")}, verdict: Refuse, reason: "no runtime starts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			finding := judge(apiserver.Node(test.name, test.runtime, "v1.23.17", test.change...))
			if finding.Unfit != (test.verdict == Refuse) {
				t.Errorf("unfit %t, want %t", finding.Unfit, test.verdict == Refuse)
			}
			if finding.Verdict != test.verdict || !strings.Contains(finding.Reason, test.reason) {
				t.Errorf("verdict %d (%s), want %d (%s)", finding.Verdict, finding.Reason, test.verdict, test.reason)
			}
		})
	}
}

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
		findings, err := newRollout(s, &recorder{}, change...).Preflight(t.Context(), nodes, alone)
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
	for _, p := range slices.Concat(Permissions(drain.Options{}, true), openPermissions()) {
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
	if err := r.CheckPermissions(t.Context()); err != nil {
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
	err := r.CheckPermissions(t.Context())
	var missing *PermissionError
	if !errors.As(err, &missing) || err.Error() != "you lack permissions: create jobs.batch -n kubectl-runtime" {
		t.Errorf("error %v", err)
	}
	if err := newRollout(s, &recorder{}).CheckPermissions(t.Context()); err != nil {
		t.Errorf("an administrator: %v", err)
	}
}

func TestPlan(t *testing.T) {
	r := New(Config{Options: Options{
		Image: agentImage, CutoverTimeout: 5 * time.Minute, Soak: 10 * time.Second, Drain: drain.Options{Timeout: 10 * time.Minute},
	}})
	var text strings.Builder
	for _, finding := range []Finding{
		{Node: "plain", Evict: []string{"default/a", "default/b"}},
		{Node: "cordoned", Cordoned: true},
		{Node: "resumed", Verdict: Resume, State: nodestate.StateCutover},
	} {
		fmt.Fprintf(&text, "%s\n", finding.Node)
		for i, step := range r.Plan(finding) {
			fmt.Fprintf(&text, "  %d. %s\n", i+1, step)
		}
	}
	want, err := os.ReadFile("testdata/plan.txt")
	if err != nil || text.String() != string(want) {
		t.Errorf("error %v, got:\n%s", err, text.String())
	}
}

// TestByHand keeps the hint to the agent in step with where the agent installs itself.
func TestByHand(t *testing.T) {
	source, err := os.ReadFile("../agent/supervise/supervise.go")
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(source), "var binDirs = []string{")
	list, _, closed := strings.Cut(list, "}")
	if !found || !closed {
		t.Fatal("there are no binDirs")
	}
	list = strings.ReplaceAll(list, `host.Dir + "`, `"/var/lib/kubectl-runtime`)
	for _, quoted := range strings.Split(list, ", ") {
		if dir := strings.Trim(quoted, `"`); dir == "" || !strings.Contains(byHand, dir) {
			t.Errorf("%q is not in %q", dir, byHand)
		}
	}
}
