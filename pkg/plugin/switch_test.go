package plugin

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// switchPod creates a pod that a drain would evict.
func switchPod(t *testing.T, s *apiserver.Server, node, name string, change ...func(*corev1.Pod)) {
	t.Helper()
	controller, zero := true, int64(0)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "x", UID: "1", Controller: &controller},
		}},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	for _, c := range change {
		c(pod)
	}
	if _, err := s.Client().CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Client().CoreV1().Pods("default").Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			t.Error(err)
		}
	})
}

// TestSwitchRefusals has a row per bad input. Nothing may have been changed after any of them.
func TestSwitchRefusals(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t,
		apiserver.Node("docker-1", "docker://20.10.24", "v1.23.17"),
		apiserver.Node("docker-2", "docker://20.10.24", "v1.23.17"),
		apiserver.Node("containerd-1", "containerd://1.6.20", "v1.23.17"),
		apiserver.Node("windows-1", "docker://20.10.9", "v1.23.17", func(n *corev1.Node) { n.Status.NodeInfo.OperatingSystem = "windows" }),
		apiserver.Node("unready-1", "docker://20.10.24", "v1.23.17", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse }),
		apiserver.Node("kops-1", "docker://20.10.24", "v1.23.17", func(n *corev1.Node) { n.Labels["kops.k8s.io/instancegroup"] = "nodes" }),
	)
	switchPod(t, s, "docker-2", "bare", func(p *corev1.Pod) { p.OwnerReferences = nil })
	admin := apiserver.Kubeconfig(t, s.Admin())
	reader := apiserver.Kubeconfig(t, s.User(t, "switch-reader", apiserver.Allow("", "nodes", "get", "list")))
	for _, test := range []struct {
		name string
		args []string
		user string
		code int
		out  string
		errs []string
	}{
		{name: "no nodes", code: 1, errs: []string{"no nodes given", "--selector"}},
		{name: "two ways at once", args: []string{"docker-1", "--all"}, code: 1, errs: []string{"cannot be combined"}},
		{name: "no terminal", args: []string{"docker-1"}, code: 1, errs: []string{"--yes", "--dry-run=client"}},
		{name: "server dry run", args: []string{"docker-1", "--dry-run=server"}, code: 1, errs: []string{"--dry-run=client"}},
		{name: "odd dry run", args: []string{"docker-1", "--dry-run=odd"}, code: 1, errs: []string{`"odd"`}},
		{name: "odd pull secret", args: []string{"docker-1", "-y", "--image-pull-secret=ok,Not_A_Name"}, code: 1, errs: []string{`--image-pull-secret="Not_A_Name"`}},
		{name: "odd priority class", args: []string{"docker-1", "-y", "--priority-class=a b"}, code: 1, errs: []string{`--priority-class="a b"`}},
		{name: "odd pull policy", args: []string{"docker-1", "-y", "--image-pull-policy=Sometimes"}, code: 1, errs: []string{"Sometimes"}},
		{name: "short cutover", args: []string{"docker-1", "-y", "--cutover-timeout=5s"}, code: 1, errs: []string{"--cutover-timeout=5s"}},
		{name: "relative archive", args: []string{"docker-1", "-y", "--containerd-archive=c.tar.gz"}, code: 1, errs: []string{"--containerd-archive=c.tar.gz", "absolute path"}},
		{name: "odd digest", args: []string{"docker-1", "-y", "--containerd-archive=/c", "--containerd-archive-sha256=abc"}, code: 1, errs: []string{"--containerd-archive-sha256", "64 hexadecimal digits"}},
		{name: "digest of nothing", args: []string{"docker-1", "-y", "--containerd-archive-sha256=" + strings.Repeat("A", 64)}, code: 1, errs: []string{"give both"}},
		{name: "budget of nothing", args: []string{"--all", "-y", "--max-unavailable=0"}, code: 1, errs: []string{"--max-unavailable", "no node could ever start: give at least 1 or 1%"}},
		{name: "budget of no percent", args: []string{"--all", "-y", "--max-unavailable=0%"}, code: 1, errs: []string{"--max-unavailable", "at least 1 or 1%"}},
		{name: "odd budget", args: []string{"--all", "-y", "--max-unavailable=half"}, code: 1, errs: []string{"--max-unavailable", "give 3 or 10%"}},
		{name: "no failures", args: []string{"--all", "-y", "--max-failures=0"}, code: 1, errs: []string{"--max-failures and --drain-attempts cannot be less than 1"}},
		{name: "odd pod selector", args: []string{"docker-1", "-y", "--pod-selector=a in"}, code: 1, errs: []string{"--pod-selector"}},
		{name: "odd format", args: []string{"docker-1", "-y", "-o", "wide"}, code: 1, errs: []string{`--output "wide"`, "json, yaml"}},
		{name: "unknown flag", args: []string{"docker-1", "--no-such-flag"}, code: 1, errs: []string{"--no-such-flag"}},
		{name: "unknown node", args: []string{"docker-1", "nowhere", "-y"}, code: 2, errs: []string{`node "nowhere" not found`}},
		{name: "no match", args: []string{"-l", "no=such", "-y"}, code: 2, errs: []string{`"no=such"`}},
		{name: "windows", args: []string{"docker-1", "windows-1", "-y"}, code: 2, errs: []string{"node windows-1: Windows nodes are not switched", "nothing was changed"}},
		{name: "not ready", args: []string{"unready-1", "-y"}, code: 2, errs: []string{"node unready-1: it is not Ready"}},
		{name: "replaced nodes", args: []string{"kops-1", "-y"}, code: 2, errs: []string{"node kops-1: kops: ", "replace the node"}},
		{name: "all that is wrong", args: []string{"kops-1", "unready-1", "-y"}, code: 2, errs: []string{"node kops-1: ", "node unready-1: "}},
		{name: "bare pod", args: []string{"docker-2", "-y"}, code: 2, errs: []string{"node docker-2: it cannot be drained", "--force", "default/bare"}},
		{name: "no permission", args: []string{"docker-1", "-y"}, user: reader, code: 2, errs: []string{"you lack permissions: patch nodes", "create jobs.batch -n kubectl-runtime", "create pods --subresource=eviction", "auth can-i patch nodes --kubeconfig="}},
		{name: "already", args: []string{"containerd-1", "-y"}, code: 0, out: "node/containerd-1 already on containerd://1.6.20\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := admin
			if test.user != "" {
				config = test.user
			}
			r := call(t.Context(), append([]string{"switch", "--kubeconfig=" + config}, test.args...)...)
			if r.code != test.code || r.out != test.out {
				t.Errorf("exit %d, want %d; out %q, want %q", r.code, test.code, r.out, test.out)
			}
			for _, want := range test.errs {
				if !strings.Contains(r.errOut, want) {
					t.Errorf("%q is not in:\n%s", want, r.errOut)
				}
			}
		})
	}
	untouched(t, s)
}

// TestSwitchSkipsUnfit: of nodes that were chosen together, those that cannot be switched are skipped with the reason; named ones, and all with
// --strict, refuse.
func TestSwitchSkipsUnfit(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t,
		apiserver.Node("fit", "docker://20.10.24", "v1.23.17"),
		apiserver.Node("cri-o", "cri-o://1.23.0", "v1.23.17"),
		apiserver.Node("held", "docker://20.10.24", "v1.23.17"),
		apiserver.Node("removed-soon", "docker://20.10.24", "v1.23.17", func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Value: "1700000000", Effect: corev1.TaintEffectNoSchedule}}
		}),
		apiserver.Node("unready", "docker://20.10.24", "v1.23.17", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse }),
		apiserver.Node("virtual", "", "v1.23.17"),
	)
	blockedFor(t, s, "all")
	switchPod(t, s, "held", "needed", func(p *corev1.Pod) { p.Labels = map[string]string{"app": "all"} })
	config := "--kubeconfig=" + apiserver.Kubeconfig(t, s.Admin())
	for _, test := range []struct {
		name      string
		args      []string
		code      int
		out, errs []string
	}{
		{name: "all", args: []string{"--all"}, out: []string{
			"node/cri-o skipped: it runs cri-o://1.23.0", "node/fit would be switched", "node/held skipped: drain-budget-never: ReplicaSet default/x",
			"node/removed-soon skipped: an autoscaler is about to remove it (taint ToBeDeletedByClusterAutoscaler)",
			"node/unready skipped: it is not Ready", "node/virtual skipped: it does not report a runtime",
		}},
		{name: "strict", args: []string{"--all", "--strict"}, code: 2, errs: []string{"node cri-o: ", "node removed-soon: ", "node unready: ", "node virtual: ", "nothing was changed"}},
		{name: "nothing is left", args: []string{"-l", "kubernetes.io/hostname in (unready,virtual)"}, code: 2, errs: []string{"none of the nodes can be moved to containerd; 2 of them skipped"}},
		{name: "named", args: []string{"fit", "removed-soon"}, code: 2, errs: []string{"node removed-soon: an autoscaler is about to remove it"}},
		{name: "named and held", args: []string{"fit", "held"}, code: 2, errs: []string{"node held: drain-budget-never"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := call(t.Context(), append([]string{"switch", config, "--dry-run"}, test.args...)...)
			if r.code != test.code {
				t.Errorf("exit %d, want %d\n%s%s", r.code, test.code, r.out, r.errOut)
			}
			for _, want := range test.out {
				if !strings.Contains(r.out, want) {
					t.Errorf("%q is not in:\n%s", want, r.out)
				}
			}
			for _, want := range test.errs {
				if !strings.Contains(r.errOut, want) {
					t.Errorf("%q is not in:\n%s", want, r.errOut)
				}
			}
		})
	}
	untouched(t, s)
}

// untouched checks that no node was cordoned or annotated, and that the namespace was not created.
func untouched(t *testing.T, s *apiserver.Server) {
	t.Helper()
	nodes, err := s.Client().CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes.Items {
		if node.Spec.Unschedulable || node.Annotations[nodestate.AnnotationPhase] != "" {
			t.Errorf("node %s was touched: unschedulable %t, annotations %v", node.Name, node.Spec.Unschedulable, node.Annotations)
		}
	}
	if _, err := s.Client().CoreV1().Namespaces().Get(t.Context(), "kubectl-runtime", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace is there: %v", err)
	}
}

func TestSwitchOnlyNode(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("alone", "docker://20.10.24", "v1.23.17"))
	config := "--kubeconfig=" + apiserver.Kubeconfig(t, s.Admin())
	if r := call(t.Context(), "switch", config, "alone", "--yes"); r.code != 2 || !strings.Contains(r.errOut, "only node") || !strings.Contains(r.errOut, "--force") {
		t.Errorf("exit %d\n%s", r.code, r.errOut)
	}
	if r := call(t.Context(), "switch", config, "--all", "--force", "--dry-run=client"); r.code != 0 || !strings.Contains(r.out, "node/alone would be switched") {
		t.Errorf("exit %d\n%s%s", r.code, r.out, r.errOut)
	}
	untouched(t, s)
}

func TestSwitchDryRun(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t,
		apiserver.Node("docker-1", "docker://20.10.24", "v1.23.17"),
		apiserver.Node("docker-2", "docker://20.10.24", "v1.23.17", func(n *corev1.Node) { n.Spec.Unschedulable = true }),
		apiserver.Node("containerd-1", "containerd://1.6.20", "v1.23.17"),
	)
	switchPod(t, s, "docker-1", "web")
	r := call(t.Context(), "switch", "--kubeconfig="+apiserver.Kubeconfig(t, s.Admin()), "--all", "--dry-run")
	if r.code != 0 || r.errOut != "" {
		t.Errorf("exit %d\n%s", r.code, r.errOut)
	}
	golden(t, "switch-dry-run.txt", r.out)
	config := "--kubeconfig=" + apiserver.Kubeconfig(t, s.Admin())
	r = call(t.Context(), "switch", config, "--all", "--dry-run", "-o", "json")
	golden(t, "switch-dry-run-json.txt", r.out)
	if r = call(t.Context(), "switch", config, "docker-1", "nowhere", "-y", "-o", "yaml"); r.code != 2 {
		t.Errorf("exit %d\n%s", r.code, r.errOut)
	}
	golden(t, "switch-refused-yaml.txt", r.out)
	nodes, err := s.Client().CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes.Items {
		if node.Annotations[nodestate.AnnotationPhase] != "" {
			t.Errorf("node %s was annotated", node.Name)
		}
	}
}

// TestSwitchExitCodes maps each outcome to what scripts rely on.
func TestSwitchExitCodes(t *testing.T) {
	o := &runOptions{factory: cli.NewFactory(genericiooptions.NewTestIOStreamsDiscard(), "v0"), flags: []string{"--image=i", "--yes=true"}}
	interrupted, cancel := context.WithCancelCause(t.Context())
	cancel(&cli.SignalError{Signal: syscall.SIGINT})
	for _, test := range []struct {
		outcome   nodeswitch.Outcome
		resumable bool
		ctx       context.Context
		code      int
	}{
		{nodeswitch.OutcomeRefused, false, t.Context(), 2},
		{nodeswitch.OutcomeRolledBack, false, t.Context(), 4},
		{nodeswitch.OutcomeStuck, true, t.Context(), 5},
		{nodeswitch.OutcomeTimeout, true, t.Context(), 124},
		{nodeswitch.OutcomeFailed, true, t.Context(), 1},
		{nodeswitch.OutcomeInterrupted, true, interrupted, 130},
	} {
		err := o.exitError("switch", "node-1", &nodeswitch.Error{
			Node: "node-1", Stage: nodeswitch.StageDrain, Outcome: test.outcome, Resumable: test.resumable,
			State: "the node serves", Hint: "look", Detail: "output", Cause: errors.New("cause"),
		})
		if got := cli.ExitCode(test.ctx, err); got != test.code {
			t.Errorf("outcome %d: exit code %d, want %d", test.outcome, got, test.code)
		}
		var exit *cli.ExitError
		if !errors.As(err, &exit) || exit.Detail != "output" || !strings.Contains(exit.Hint, "look") {
			t.Errorf("outcome %d: %+v", test.outcome, exit)
		}
		if resume := "`kubectl runtime switch node-1 --image=i --yes=true` resumes the run"; strings.Contains(exit.Hint, resume) != test.resumable {
			t.Errorf("outcome %d: hint %q", test.outcome, exit.Hint)
		}
		if want := "node node-1: drain: cause; the node serves"; err.Error() != want {
			t.Errorf("error %q, want %q", err, want)
		}
	}
}

// TestSwitchResult pins what scripts read of nodes that were moved.
func TestSwitchResult(t *testing.T) {
	streams, _, out, _ := genericiooptions.NewTestIOStreams()
	o := &runOptions{factory: cli.NewFactory(streams, "v0"), output: "json"}
	if err := o.completeOutput(); err != nil {
		t.Fatal(err)
	}
	report := &nodeswitch.Report{
		Node: "node-1", From: "docker://20.10.24", To: "containerd://1.6.20", Run: "r1", OutOfService: 12345678 * time.Microsecond,
		Stages:       []nodeswitch.StageTime{{Stage: nodeswitch.StageDrain, Elapsed: 3 * time.Second}},
		Steps:        []nodeswitch.StepTime{{Phase: protocol.PhaseCutover, ID: "kubelet-start", Elapsed: 1500 * time.Millisecond}},
		ChangedFiles: []string{"/etc/containerd/config.toml"}, Warnings: []string{"live-restore is not carried over"},
	}
	failure := &nodeswitch.Error{Node: "node-2", Stage: nodeswitch.StageDrain, State: "the node serves", Cause: errors.New("not finished")}
	if err := o.conclude(nodeResult(report, nil), "for people"); err != nil {
		t.Fatal(err)
	}
	o.results = append(o.results, nodeResult(&nodeswitch.Report{Node: "node-2"}, failure), v1alpha1.NodeResult{Node: "node-3", Result: v1alpha1.ResultNotBegun})
	if err := o.printResults(move{kind: v1alpha1.KindSwitchResult}, failure); err != nil {
		t.Fatal(err)
	}
	golden(t, "switch-json.txt", out.String())
}

// TestSwitchDefaults pins what is dangerous to change.
func TestSwitchDefaults(t *testing.T) {
	cmd := NewSwitchCommand(cli.NewFactory(genericiooptions.NewTestIOStreamsDiscard(), "v1.2.3"))
	for flag, want := range map[string]string{
		"timeout": (10 * time.Minute).String(), "grace-period": "-1", "cutover-timeout": (5 * time.Minute).String(), "force": "false",
		"delete-emptydir-data": "false", "disable-eviction": "false", "dry-run": "none", "yes": "false", "keep-docker": "false", "images": "used", "verify-images": "false", "output": "",
	} {
		if got := cmd.Flags().Lookup(flag).DefValue; got != want {
			t.Errorf("--%s is %s by default, want %s", flag, got, want)
		}
	}
}
