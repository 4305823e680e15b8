package preflight

import (
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

const (
	dockerVersion     = "docker://20.10.24"
	containerdVersion = "containerd://1.6.20"
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

// left puts a node where an earlier run left it.
func left(state nodestate.State, cordonedByRun bool) func(*corev1.Node) {
	return func(node *corev1.Node) {
		annotated(nodestate.AnnotationPhase, string(state), nodestate.AnnotationRun, "r1", nodestate.AnnotationFrom, dockerVersion,
			nodestate.AnnotationCRISocket, "unix:///var/run/containerd/containerd.sock", nodestate.AnnotationOldCRISocket, "/var/run/dockershim.sock")(node)
		if cordonedByRun {
			node.Spec.Unschedulable = true
			node.Annotations[nodestate.AnnotationWasUnschedulable] = "false"
		}
	}
}

func TestJudgeSwitch(t *testing.T) {
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
			finding := JudgeSwitch(apiserver.Node(test.name, test.runtime, "v1.23.17", test.change...))
			if finding.Unfit != (test.verdict == Refuse) {
				t.Errorf("unfit %t, want %t", finding.Unfit, test.verdict == Refuse)
			}
			if finding.Verdict != test.verdict || !strings.Contains(finding.Reason, test.reason) {
				t.Errorf("verdict %d (%s), want %d (%s)", finding.Verdict, finding.Reason, test.verdict, test.reason)
			}
		})
	}
}

func TestJudgeRollback(t *testing.T) {
	upgraded := func(n *corev1.Node) { n.Status.NodeInfo.KubeletVersion = "v1.24.1" }
	silent := func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }
	for _, test := range []struct {
		name    string
		runtime string
		change  []func(*corev1.Node)
		force   bool
		verdict Verdict
		reason  string
	}{
		{name: "done", runtime: containerdVersion, change: []func(*corev1.Node){left("done", false)}, verdict: Go},
		{name: "never-switched", runtime: dockerVersion, verdict: Refuse, reason: "never switched"},
		{name: "born-on-containerd", runtime: containerdVersion, verdict: Refuse, reason: "never switched"},
		{name: "rolled-back", runtime: dockerVersion, change: []func(*corev1.Node){left("rolled-back", false)}, verdict: Skip, reason: "already on " + dockerVersion},
		{name: "failed", runtime: dockerVersion, change: []func(*corev1.Node){left("failed", false)}, verdict: Skip},
		{name: "switched-by-hand", runtime: containerdVersion, change: []func(*corev1.Node){left("rolled-back", false)}, verdict: Refuse, reason: "not that switch's doing"},
		{name: "odd-state", runtime: containerdVersion, change: []func(*corev1.Node){left("odd", false)}, verdict: Refuse, reason: `"odd"`},
		{name: "cri-o", runtime: "cri-o://1.30.0", change: []func(*corev1.Node){left("done", false)}, verdict: Refuse, reason: "cri-o"},
		{name: "cutover", runtime: dockerVersion, change: []func(*corev1.Node){left("cutover", true), notReady}, verdict: Go},
		{name: "broken", runtime: dockerVersion, change: []func(*corev1.Node){left("broken", true), notReady}, verdict: Go},
		{name: "rolling-back", runtime: dockerVersion, change: []func(*corev1.Node){left("rolling-back", true)}, verdict: Resume},
		{name: "silent", runtime: containerdVersion, change: []func(*corev1.Node){left("done", false), silent}, verdict: Refuse, reason: "--force"},
		{name: "silent-forced", runtime: containerdVersion, change: []func(*corev1.Node){left("done", false), silent}, force: true, verdict: Go},
		{name: "no-dockershim", runtime: containerdVersion, change: []func(*corev1.Node){left("done", false), upgraded}, verdict: Refuse, reason: "gone from Kubernetes 1.24"},
		{
			name: "cri-dockerd", runtime: containerdVersion, verdict: Go,
			change: []func(*corev1.Node){left("done", false), upgraded, annotated(nodestate.AnnotationOldCRISocket, "", nodestate.AnnotationFromEndpoint, "unix:///run/cri-dockerd.sock")},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			finding := JudgeRollback(apiserver.Node(test.name, test.runtime, "v1.23.17", test.change...), test.force)
			if finding.Verdict != test.verdict || !strings.Contains(finding.Reason, test.reason) {
				t.Errorf("verdict %d (%s), want %d (%s)", finding.Verdict, finding.Reason, test.verdict, test.reason)
			}
		})
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
		if dir := strings.Trim(quoted, `"`); dir == "" || !strings.Contains(ByHand, dir) {
			t.Errorf("%q is not in %q", dir, ByHand)
		}
	}
}
