package plugin

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// blockedFor makes a budget that needs all of an app's pods.
func blockedFor(t *testing.T, s *apiserver.Server, app string) {
	t.Helper()
	one := intstr.FromInt32(1)
	s.PutBudget(t, &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: app},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
		Status:     policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 1, ExpectedPods: 1, DesiredHealthy: 1, CurrentHealthy: 1},
	})
}

// TestSwitchChecks: what blocks refuses before anything is changed, with the way to go on; what warns does not.
func TestSwitchChecks(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("free", "docker://20.10.24", "v1.23.17"), apiserver.Node("held", "docker://20.10.24", "v1.23.17"),
		apiserver.Node("resumed", "docker://20.10.24", "v1.23.17", func(n *corev1.Node) {
			n.Annotations = map[string]string{nodestate.AnnotationPhase: string(nodestate.StateVerifying), nodestate.AnnotationRun: "20260101-000000-abcde"}
		}))
	blockedFor(t, s, "all")
	needed := func(p *corev1.Pod) { p.Labels = map[string]string{"app": "all"} }
	switchPod(t, s, "held", "needed", needed)
	switchPod(t, s, "resumed", "needed-too", needed)
	switchPod(t, s, "free", "docker", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/run/docker.sock"}}}}
	})
	config := "--kubeconfig=" + apiserver.Kubeconfig(t, s.Admin())
	const refusal = "node held: drain-budget-never: ReplicaSet default/x: PodDisruptionBudget all: needs 1 of 1 pods"
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"held"}, 2, refusal},
		{[]string{"free", "held"}, 2, refusal},
		{[]string{"held", "--ignore-checks=drain-budget-never"}, 0, ""},
		{[]string{"held", "--disable-eviction"}, 0, ""},
		{[]string{"held", "--pod-selector=app=none"}, 0, ""},
		{[]string{"held", "--ignore-checks=no-such"}, 1, "no check is called"},
		{[]string{"held", "--ignore-checks=drain-bare-pod"}, 1, "cannot be ignored"},
		{[]string{"resumed"}, 0, ""},
		{[]string{"free"}, 0, "node free: warnings of workload-docker-socket (1); `kubectl runtime plan free"},
	} {
		r := call(t.Context(), append([]string{"switch", config, "--dry-run"}, test.args...)...)
		if r.code != test.code || !strings.Contains(r.errOut, test.want) || test.want == "" && r.errOut != "" {
			t.Errorf("%v: exit %d, want %d\n%s", test.args, r.code, test.code, r.errOut)
		}
		if test.code == 2 && (!strings.Contains(r.errOut, "nothing was changed") || r.out != "") {
			t.Errorf("%v: %q\n%s", test.args, r.out, r.errOut)
		}
	}
}

// TestSwitchChecksWithFewRequests: the checks cost one list of a node's pods and one of budgets.
func TestSwitchChecksWithFewRequests(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("a", "docker://20.10.24", "v1.23.17"), apiserver.Node("b", "docker://20.10.24", "v1.23.17"))
	factory := cli.NewFactory(genericiooptions.NewTestIOStreamsDiscard(), "test")
	*factory.Flags.KubeConfig = apiserver.Kubeconfig(t, s.Admin())
	asked := countRequests(factory)
	cmd := NewSwitchCommand(factory)
	cmd.SetArgs([]string{"a", "--dry-run"})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	var lists []string
	for _, request := range asked() {
		if strings.Contains(request, "limit=") && !strings.Contains(request, "/nodes") {
			lists = append(lists, request)
		}
	}
	pods := "GET /api/v1/pods?fieldSelector=spec.nodeName%3Da&limit=500"
	budgets := "GET /apis/policy/v1/poddisruptionbudgets?limit=500"
	most := 3
	if apiserver.Before(s.Version, "1.21") {
		most++ // policy/v1 is asked for first
	}
	if n := len(slices.DeleteFunc(slices.Clone(lists), func(r string) bool { return r != budgets })); n != 1 || !slices.Contains(lists, pods) || len(lists) > most {
		t.Errorf("%q", lists)
	}
}
