package inventory

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// The runtimes' names as nodeInfo.containerRuntimeVersion spells them before "://". Docker stands for dockershim and
// cri-dockerd alike: both report "docker".
const (
	RuntimeDocker     = "docker"
	RuntimeContainerd = "containerd"
	RuntimeCRIO       = "cri-o"
)

// osWindows is nodeInfo.operatingSystem on Windows.
const osWindows = "windows"

// Row is one node. Strings that the node does not report are empty; the others are one line each, see untrusted.Line.
type Row struct {
	Name string
	// Ready is the Ready condition: True, False or Unknown; empty if there is none.
	Ready         corev1.ConditionStatus
	Unschedulable bool
	// Gone is set by whoever watches, for a node that was deleted or that a selector matches no more.
	Gone bool

	// Runtime and RuntimeVersion are the halves of nodeInfo.containerRuntimeVersion: "docker" and "20.10.24+dfsg1".
	Runtime        string
	RuntimeVersion string
	// Reported is nodeInfo.containerRuntimeVersion.
	Reported string
	// KubeletVersion is as the kubelet spells it: "v1.23.17".
	KubeletVersion string

	OS           string // linux, windows
	Architecture string // amd64, arm64, …
	OSImage      string
	Kernel       string
	InternalIP   string
	// CRISocket is kubeadm's annotation, where there is one.
	CRISocket string

	// Switch and what follows are from this program's annotations.
	Switch  nodestate.State
	From    string
	To      string
	Run     string
	Message string
	// AgentImage is the image of the agent that the last run had.
	AgentImage string
	// BadRun: the annotation with the run's ID holds something else, so that Run is empty.
	BadRun bool

	Advice Advice
}

// maxWord bounds what a node says of itself, in bytes.
const maxWord = 128

// FromNode reads a Node.
func FromNode(node *corev1.Node) Row {
	info := node.Status.NodeInfo
	word := func(text string) string { return untrusted.Line(text, maxWord) }
	state := nodestate.Read(node)
	row := Row{
		Name:           node.Name,
		Ready:          readyStatus(node),
		Unschedulable:  node.Spec.Unschedulable,
		KubeletVersion: word(info.KubeletVersion),
		OS:             word(operatingSystem(node)),
		Architecture:   word(info.Architecture),
		OSImage:        word(info.OSImage),
		Kernel:         word(info.KernelVersion),
		InternalIP:     word(internalIP(node)),
		CRISocket:      state.CRISocket,
		Switch:         state.State,
		From:           state.From,
		To:             state.To,
		Message:        state.Message,
		AgentImage:     state.AgentImage,
		Reported:       word(info.ContainerRuntimeVersion),
	}
	row.Runtime, row.RuntimeVersion = splitRuntime(row.Reported)
	row.Run, row.BadRun = state.Run, state.BadRun
	row.Advice = advise(node, row)
	return row
}

// FromNodes reads Nodes; the rows are sorted by name.
func FromNodes(nodes []corev1.Node) []Row {
	rows := make([]Row, len(nodes))
	for i := range nodes {
		rows[i] = FromNode(&nodes[i])
	}
	slices.SortFunc(rows, func(a, b Row) int { return strings.Compare(a.Name, b.Name) })
	return rows
}

// Status is the cell that `kubectl get nodes` shows: "Ready", "NotReady,SchedulingDisabled", "Unknown";
// and "Gone", which is ours
// (printNode in k8s.io/kubernetes/pkg/printers/internalversion/printers.go).
func (r Row) Status() string {
	if r.Gone {
		return "Gone"
	}
	status := "Unknown"
	switch r.Ready {
	case corev1.ConditionTrue:
		status = "Ready"
	case corev1.ConditionFalse, corev1.ConditionUnknown:
		status = "NotReady"
	}
	if r.Unschedulable {
		status += ",SchedulingDisabled"
	}
	return status
}

// splitRuntime splits "docker://20.10.24" in two. A dockershim that could not reach Docker says "docker://Unknown", which
// tells no version; what has no "://" is no runtime.
func splitRuntime(s string) (name, version string) {
	name, version, ok := strings.Cut(s, "://")
	if !ok {
		return "", ""
	}
	if strings.EqualFold(version, "unknown") {
		version = ""
	}
	return name, version
}

// readyStatus is empty for a node that has no Ready condition.
func readyStatus(node *corev1.Node) corev1.ConditionStatus {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status
		}
	}
	return ""
}

func internalIP(node *corev1.Node) string {
	for _, address := range node.Status.Addresses {
		if address.Type == corev1.NodeInternalIP {
			return address.Address
		}
	}
	return ""
}

// operatingSystem falls back to the label that kubelets set, for a node that has no status yet.
func operatingSystem(node *corev1.Node) string {
	if os := node.Status.NodeInfo.OperatingSystem; os != "" {
		return os
	}
	return node.Labels[corev1.LabelOSStable]
}
