package inventory

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// AdviceID names a kind of advice. The IDs are stable: scripts may select by them.
type AdviceID string

// The kinds of advice.
const (
	// AdviceNone: nothing to do.
	AdviceNone AdviceID = ""
	// AdviceSwitchFirst: the kubelet's own dockershim, which Kubernetes 1.24 has no more.
	AdviceSwitchFirst AdviceID = "switch-first"
	// AdviceSwitch: Docker through cri-dockerd.
	AdviceSwitch AdviceID = "switch"
	// AdviceReplaceNode: the node's software comes with its image or its distribution; a change on the host would not last.
	AdviceReplaceNode AdviceID = "replace-node"
	// AdviceWindows: Windows nodes are not switched.
	AdviceWindows AdviceID = "windows"
	// AdviceK3s: k3s brings its own containerd and only has to be told to use it.
	AdviceK3s AdviceID = "k3s"
	// AdviceNotReady: a node on Docker has to be Ready before it is switched.
	AdviceNotReady AdviceID = "not-ready"
	// AdviceResume: a switch is under way, or was interrupted.
	AdviceResume AdviceID = "resume"
	// AdviceRetry: the last switch failed and was undone.
	AdviceRetry AdviceID = "retry"
	// AdviceRepair: the last switch failed and could not be undone.
	AdviceRepair AdviceID = "repair"
	// AdviceContainerdCRI: this containerd and this kubelet have no CRI version in common, or the next kubelet will have none.
	AdviceContainerdCRI AdviceID = "containerd-cri"
	// AdviceContainerdOld: containerd's maintainers do not recommend this version for this Kubernetes version.
	AdviceContainerdOld AdviceID = "containerd-old"
	// AdviceUnknown: the node does not say what runtime it has.
	AdviceUnknown AdviceID = "unknown"
)

// Advice is what to do about a node. The zero value is: nothing.
type Advice struct {
	ID AdviceID
	// Text is a sentence without a full stop.
	Text string
}

// Refusal says why a node must never be switched in place, whatever state it is in. It is AdviceNone for the others.
func Refusal(node *corev1.Node) Advice {
	if operatingSystem(node) == osWindows {
		return Advice{AdviceWindows, "Windows nodes are not switched: add nodes that run containerd and drain this one"}
	}
	if node.Labels["type"] == "virtual-kubelet" { // as it labels its nodes, of all providers
		return Advice{AdviceUnknown, "a virtual node: there is no machine behind it that could be switched"}
	}
	for _, image := range managedImages {
		if image.matches(node) {
			return Advice{AdviceReplaceNode, image.name + ": " + image.text}
		}
	}
	if strings.Contains(node.Status.NodeInfo.KubeletVersion, "+k3s") {
		return Advice{AdviceK3s, "k3s: remove --docker from its arguments and restart it; it then runs its own containerd"}
	}
	return Advice{}
}

// managedImages are the platforms on which a node's runtime is not a matter of the node.
var managedImages = []struct {
	name, text string
	matches    func(*corev1.Node) bool
}{
	// k8s.io/node.go of github.com/rancher/rke sets this annotation; kubelet and etcd are Docker containers there.
	{"RKE1", "its kubelet is a Docker container: move to RKE2 or replace the node", hasAnnotation("rke.cattle.io/internal-ip")},
	// nodeup writes the kubelet's and the runtime's files again at every boot (nodeup/pkg/model/kubelet.go).
	{"kops", "nodeup rewrites the host at boot: set containerRuntime: containerd in the cluster spec and replace the node", hasLabel("kops.k8s.io/instancegroup")},
	{"Bottlerocket", "the image is read-only: replace the node with a newer image", hasOSImage("Bottlerocket")},
	{"Container-Optimized OS", "the image is read-only: replace the node with a containerd image", hasOSImage("Container-Optimized OS")},
	{"Docker Desktop", "the node is Docker Desktop's own", hasOSImage("Docker Desktop")},
}

func hasAnnotation(key string) func(*corev1.Node) bool {
	return func(node *corev1.Node) bool { _, ok := node.Annotations[key]; return ok }
}

func hasLabel(key string) func(*corev1.Node) bool {
	return func(node *corev1.Node) bool { _, ok := node.Labels[key]; return ok }
}

func hasOSImage(prefix string) func(*corev1.Node) bool {
	return func(node *corev1.Node) bool { return strings.HasPrefix(node.Status.NodeInfo.OSImage, prefix) }
}

// BadRun is what to do about a node whose Row has BadRun, a sentence without a full stop.
const BadRun = "annotation " + nodestate.AnnotationRun + " does not hold a run's ID, which this program did not write: find out who did, repair the node, " +
	"then remove its annotations that begin with " + nodestate.Prefix

// advise weighs what matters most first: a run that is not over, then the runtime.
func advise(node *corev1.Node, row Row) Advice {
	switch {
	case row.BadRun:
		return Advice{AdviceRepair, BadRun}
	case row.Switch == nodestate.StateBroken:
		return Advice{AdviceRepair, orDefault(row.Message, "the last switch could not be undone: a person is needed") +
			"; once the cause is cured, `kubectl runtime rollback NODE` tries again"}
	case row.Switch == nodestate.StateRollingBack:
		text := "a rollback is under way; if nobody runs it, `kubectl runtime rollback NODE` resumes it"
		if row.Message != "" {
			text += "; it came to this: " + row.Message
		}
		return Advice{AdviceResume, text}
	case row.Switch.Open():
		return Advice{AdviceResume, "a switch is under way; if nobody runs it, `kubectl runtime switch NODE` resumes it and `kubectl runtime rollback NODE` undoes it"}
	}
	switch row.Runtime {
	case RuntimeDocker:
		return adviseDocker(node, row)
	case RuntimeContainerd:
		return adviseContainerd(row)
	case "":
		if refusal := Refusal(node); refusal.ID == AdviceUnknown {
			return refusal
		}
		return Advice{AdviceUnknown, "the node does not report a runtime: its kubelet may never have been up"}
	default:
		return Advice{}
	}
}

func adviseDocker(node *corev1.Node, row Row) Advice {
	if refusal := Refusal(node); refusal.ID != AdviceNone {
		return refusal
	}
	if row.Ready != corev1.ConditionTrue {
		return Advice{AdviceNotReady, "only a Ready node is switched: repair it first"}
	}
	if row.Switch == nodestate.StateFailed || row.Switch == nodestate.StateRolledBack {
		return Advice{AdviceRetry, orDefault(row.Message, "the last switch failed; the node is on Docker as before") +
			"; `kubectl runtime switch NODE` tries again"}
	}
	kubelet, ok := version.Parse(row.KubeletVersion)
	switch {
	case !ok:
		return Advice{AdviceUnknown, fmt.Sprintf("kubelet version %q cannot be read", row.KubeletVersion)}
	case kubelet.AtLeast(1, 24):
		return Advice{AdviceSwitch, "Docker through cri-dockerd: switch it to containerd with `kubectl runtime switch`"}
	default:
		return Advice{AdviceSwitchFirst, "dockershim is gone from Kubernetes 1.24: switch before the kubelet is upgraded"}
	}
}

// matrix is containerd's support matrix (RELEASES.md of v2.4.2): for a Kubernetes 1.minor the recommended releases, oldest
// first. A release newer than the last one is fine, too. Kubernetes versions newer than the table use its last line.
var matrix = []struct {
	minor    int
	releases []version.Version
}{
	{32, []version.Version{{Major: 1, Minor: 6, Patch: 36}, {Major: 1, Minor: 7, Patch: 24}, {Major: 2, Minor: 0, Patch: 0}, {Major: 2, Minor: 1, Patch: 0}}},
	{33, []version.Version{{Major: 1, Minor: 6, Patch: 36}, {Major: 1, Minor: 7, Patch: 24}, {Major: 2, Minor: 0, Patch: 0}, {Major: 2, Minor: 1, Patch: 0}}},
	{34, []version.Version{{Major: 1, Minor: 6, Patch: 39}, {Major: 1, Minor: 7, Patch: 28}, {Major: 2, Minor: 0, Patch: 6}, {Major: 2, Minor: 1, Patch: 3}}},
	{35, []version.Version{{Major: 1, Minor: 7, Patch: 28}, {Major: 2, Minor: 1, Patch: 5}, {Major: 2, Minor: 2, Patch: 0}}},
	{36, []version.Version{{Major: 2, Minor: 2, Patch: 0}, {Major: 2, Minor: 3, Patch: 0}}},
	{37, []version.Version{{Major: 2, Minor: 3, Patch: 0}, {Major: 2, Minor: 4, Patch: 0}}},
}

// adviseContainerd compares containerd with the kubelet: first the CRI versions that each speaks, then the support matrix.
// The kubelet speaks v1alpha2 only up to 1.22, both to 1.25 and v1 only from 1.26; containerd speaks v1alpha2 up to 1.7 and v1
// from 1.6 (pkg/kubelet/cri/remote/remote_runtime.go of 1.22, 1.23 and 1.26; plugins/cri of containerd 2.0).
func adviseContainerd(row Row) Advice {
	containerd, ok := version.Parse(row.RuntimeVersion)
	if !ok {
		return Advice{}
	}
	kubelet, ok := version.Parse(row.KubeletVersion)
	if !ok {
		return Advice{}
	}
	switch {
	case !kubelet.AtLeast(1, 23) && containerd.AtLeast(2, 0):
		return Advice{AdviceContainerdCRI, fmt.Sprintf("containerd %s has no CRI version that kubelet %s speaks: install containerd 1.7", containerd.Numbers(), kubelet.Numbers())}
	case !containerd.AtLeast(1, 6):
		if kubelet.AtLeast(1, 26) {
			return Advice{AdviceContainerdCRI, fmt.Sprintf("containerd %s has no CRI version that kubelet %s speaks: upgrade containerd", containerd.Numbers(), kubelet.Numbers())}
		}
		return Advice{AdviceContainerdCRI, fmt.Sprintf("containerd %s lacks CRI v1, which Kubernetes 1.26 needs: upgrade containerd before the kubelet", containerd.Numbers())}
	}
	if recommended, ok := recommendedFor(containerd, kubelet); !ok {
		return Advice{AdviceContainerdOld, fmt.Sprintf("containerd %s is not recommended for Kubernetes %d.%d: upgrade it to %s or newer",
			containerd.Numbers(), kubelet.Major, kubelet.Minor, recommended)}
	}
	return Advice{}
}

// recommendedFor reports whether the matrix recommends containerd for kubelet; if it does not, also the releases that it does.
func recommendedFor(containerd, kubelet version.Version) (releases string, ok bool) {
	if !kubelet.AtLeast(1, matrix[0].minor) {
		return "", true
	}
	line := matrix[len(matrix)-1]
	for _, candidate := range matrix {
		if kubelet.Minor == candidate.minor {
			line = candidate
		}
	}
	names := make([]string, 0, len(line.releases))
	for _, release := range line.releases {
		names = append(names, release.Numbers())
		if containerd.Major == release.Major && containerd.Minor == release.Minor {
			ok = containerd.Patch >= release.Patch
		}
	}
	newest := line.releases[len(line.releases)-1]
	if containerd.AtLeast(newest.Major, newest.Minor+1) {
		ok = true
	}
	return strings.Join(names, ", "), ok
}

func orDefault(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
