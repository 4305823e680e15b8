package plugin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// planCluster has two nodes on Docker, of which n1 has pods that block, and one that is done.
func planCluster(t *testing.T, s *apiserver.Server) {
	t.Helper()
	s.CreateNodes(t,
		apiserver.Node("n1", "docker://20.10.24", "v1.23.17"),
		apiserver.Node("n2", "docker://20.10.24", "v1.23.17"),
		apiserver.Node("n3", "containerd://1.7.24", "v1.23.17"),
	)
	emptyDir := func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	}
	switchPod(t, s, "n1", "bare", func(p *corev1.Pod) { p.OwnerReferences = nil })
	switchPod(t, s, "n1", "scratch", emptyDir)
	switchPod(t, s, "n3", "elsewhere", emptyDir)
	switchPod(t, s, "n2", "socket", func(p *corev1.Pod) {
		p.Labels = map[string]string{"app": "socket"}
		p.Spec.Volumes = []corev1.Volume{{Name: "sock", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/run/docker.sock"}}}}
	})
	one := intstr.FromInt32(1)
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "tight"}}
	budget.Spec.MinAvailable = &one
	budget.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "socket"}}
	s.PutBudget(t, budget)
}

func TestPlan(t *testing.T) {
	t.Setenv("LC_ALL", "C")
	s := server.Get(t)
	planCluster(t, s)
	admin := apiserver.Kubeconfig(t, s.Admin())
	noPods := apiserver.Kubeconfig(t, s.User(t, "plan-reader", apiserver.Allow("", "nodes", "get", "list")))
	for _, test := range []struct {
		name string
		args []string
		user string
		code int
	}{
		{"table", nil, admin, 2},
		{"json", []string{"-o", "json"}, admin, 2},
		{"yaml", []string{"-o", "yaml", "n2", "n3"}, admin, 0},
		{"accepted", []string{"--force", "--delete-emptydir-data"}, admin, 0},
		{"half-accepted", []string{"--force", "n1"}, admin, 2},
		{"ignored", []string{"n2", "--ignore-checks", "drain-budget,workload-docker-socket"}, admin, 0},
		{"not-ignorable", []string{"n1", "--ignore-checks", "drain-bare-pod"}, admin, 1},
		{"no-docker", []string{"n3"}, admin, 0},
		{"no-docker-json", []string{"n3", "-o", "json"}, admin, 0},
		{"unknown-node", []string{"nowhere"}, admin, 2},
		{"unknown-node-json", []string{"nowhere", "-o", "json"}, admin, 2},
		{"no-match", []string{"-l", "pool=red"}, admin, 2},
		{"unknown-check", []string{"--ignore-checks", "no-such-check"}, admin, 1},
		{"unknown-format", []string{"-o", "wide"}, admin, 1},
		{"forbidden", []string{"n1"}, noPods, 1},
		{"forbidden-json", []string{"n1", "-o", "json"}, noPods, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := call(t.Context(), append([]string{"plan", "--api-only", "--kubeconfig", test.user}, test.args...)...)
			if r.code != test.code {
				t.Errorf("exit code %d, want %d", r.code, test.code)
			}
			golden(t, "plan/"+test.name+".txt", r.out+"---\n"+strings.ReplaceAll(r.errOut, test.user, "KUBECONFIG"))
		})
	}
	untouched(t, s)
}

// TestPlanMayNotLook: a user without the right to create Jobs gets that message before any is created, and the way without.
func TestPlanMayNotLook(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("n1", "docker://20.10.24", "v1.23.17"), apiserver.Node("n2", "docker://20.10.24", "v1.23.17"))
	user := apiserver.Kubeconfig(t, s.User(t, "plan-viewer", apiserver.Allow("", "nodes", "get", "list"), apiserver.Allow("", "pods", "get", "list")))
	r := call(t.Context(), "plan", "--kubeconfig", user)
	if r.code != 1 || !strings.Contains(r.errOut, "create jobs.batch -n kubectl-runtime") || !strings.Contains(r.errOut, "--api-only") || r.out != "" {
		t.Errorf("%+v", r)
	}
	if r := call(t.Context(), "plan", "--api-only", "--kubeconfig", user); r.code != 0 || !strings.Contains(r.out, "You may not list PodDisruptionBudgets") {
		t.Errorf("%+v", r)
	}
	untouched(t, s)
}

func TestPlanOfTheOnlyNode(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("alone", "docker://20.10.24", "v1.23.17"))
	config := "--kubeconfig=" + apiserver.Kubeconfig(t, s.Admin())
	if r := call(t.Context(), "plan", "--api-only", config); r.code != 2 || !strings.Contains(r.out, "node-only-one") {
		t.Errorf("%+v", r)
	}
	if r := call(t.Context(), "plan", "--api-only", config, "--force"); r.code != 0 {
		t.Errorf("%+v", r)
	}
}

// TestPlanAsksForFewPods: few nodes of a large cluster are asked for their own pods, others for all pods at once, and without Docker none.
func TestPlanAsksForFewPods(t *testing.T) {
	s := server.Get(t)
	var many []*corev1.Node
	for i := range podListsAtMost + 1 {
		many = append(many, apiserver.Node(fmt.Sprintf("many-%d", i), "docker://20.10.24", "v1.23.17"))
	}
	s.CreateNodes(t, append(many, apiserver.Node("done", "containerd://1.7.24", "v1.23.17"))...)
	admin := apiserver.Kubeconfig(t, s.Admin())
	few, all := "GET /api/v1/pods?fieldSelector=spec.nodeName%3Dmany-0&limit=500", "GET /api/v1/pods?limit=500"
	for _, test := range []struct {
		args    []string
		allPods int
		want    []string
	}{
		{[]string{"many-0", "done"}, podListsAtMost, []string{few}},
		{[]string{"many-0", "done"}, allPodsAtMost, []string{all}},
		{nil, podListsAtMost, []string{all}},
		{[]string{"done"}, allPodsAtMost, nil},
	} {
		factory := cli.NewFactory(genericiooptions.NewTestIOStreamsDiscard(), "test")
		*factory.Flags.KubeConfig = admin
		asked := countRequests(factory)
		cmd := newPlanCommand(&PlanOptions{factory: factory, allPods: test.allPods})
		cmd.SetArgs(append(test.args, "--api-only", "-o", "json"))
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Errorf("%v: %v", test.args, err)
		}
		got := slices.DeleteFunc(asked(), func(r string) bool { return !strings.Contains(r, "/pods") })
		if !slices.Equal(got, test.want) {
			t.Errorf("%v asked for %q, want %q", test.args, got, test.want)
		}
		for _, request := range asked() {
			if !strings.HasPrefix(request, http.MethodGet+" ") {
				t.Errorf("%v: %s", test.args, request)
			}
		}
	}
}
