// Package nodestate is the state of a switch on the Node itself: annotations, and the cordon. It is the only place that reads or writes either. It
// does not know when a state is due, which is the switch's business.
package nodestate

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// Prefix is the domain of every annotation and label of this program.
const Prefix = "kubectl-runtime.dev/"

// The annotations on a Node that a switch leaves there; docs/design/cluster.md says who writes them.
const (
	// AnnotationPhase holds a State.
	AnnotationPhase = Prefix + "phase"
	// AnnotationFrom and AnnotationTo hold runtimes as nodeInfo spells them ("docker://20.10.24") or a runtime's name alone.
	AnnotationFrom = Prefix + "from"
	AnnotationTo   = Prefix + "to"
	// AnnotationRun holds the run's ID, protocol.Spec.Run.
	AnnotationRun = Prefix + "run"
	// AnnotationWasUnschedulable is "true" on a node that was cordoned before the switch cordoned it.
	AnnotationWasUnschedulable = Prefix + "was-unschedulable"
	// AnnotationTook is how long the stages of the switch took, "prepare=41s,drain=3s,cutover=21s,verify=12s"; only of one that was not
	// interrupted.
	AnnotationTook = Prefix + "took"
	// AnnotationProtected lists what of AutoscalerAnnotations the switch has set, comma-separated; it is removed with them.
	AnnotationProtected = Prefix + "protected"
	// AnnotationEpoch is the claim that wrote to the node last. A write of another one fails, see Editor.
	AnnotationEpoch = Prefix + "epoch"
	// AnnotationMessage is one sentence on the state.
	AnnotationMessage = Prefix + "message"
	// AnnotationOldCRISocket remembers AnnotationCRISocket for the way back.
	AnnotationOldCRISocket = Prefix + "old-cri-socket"
	// AnnotationFromEndpoint remembers protocol.Facts.OldEndpoint: a node cannot go back to a dockershim that its kubelet no longer has.
	AnnotationFromEndpoint = Prefix + "from-endpoint"
	// AnnotationAgentImage remembers the agent's image that a run was begun with.
	AnnotationAgentImage = Prefix + "agent-image"
	// AnnotationFailedBefore lists the canary's checks that failed on the old runtime before the run cordoned the node, comma-separated. They say
	// nothing of the new runtime, nor of the old one after a rollback.
	AnnotationFailedBefore = Prefix + "failed-before"
)

// AnnotationCRISocket is where kubeadm up to 1.36 looks for a node's CRI endpoint first. It is updated where it is, and never
// created: kubeadm 1.34 and newer keep the endpoint in instance-config.yaml (cmd/kubeadm/app/util/config/cluster.go).
const AnnotationCRISocket = "kubeadm.alpha.kubernetes.io/cri-socket"

// AutoscalerAnnotations keep autoscalers from removing a node, which looks empty while it is out of service: that of the cluster autoscaler
// (its FAQ, "How can I prevent Cluster Autoscaler from scaling down a particular node?") and Karpenter's (its documentation of disruption).
// Their value is "true".
func AutoscalerAnnotations() []string {
	return []string{"cluster-autoscaler.kubernetes.io/scale-down-disabled", "karpenter.sh/do-not-disrupt"}
}

// State is how far the switch of a node is, as the annotation AnnotationPhase tells.
type State string

// The states. StateNone is a node that was never switched.
const (
	StateNone      State = ""
	StatePreparing State = "preparing"
	StatePrepared  State = "prepared"
	StateDraining  State = "draining"
	StateCutover   State = "cutover"
	StateVerifying State = "verifying"
	StateDone      State = "done"
	StateFailed    State = "failed"
	// StateRollingBack: the host was asked to go back, and that is not verified yet.
	StateRollingBack State = "rolling-back"
	StateRolledBack  State = "rolled-back"
	StateBroken      State = "broken"
)

// Open reports whether a run in this state is not over: it runs, or waits for somebody to resume it.
func (s State) Open() bool {
	switch s {
	case StatePreparing, StatePrepared, StateDraining, StateCutover, StateVerifying, StateRollingBack:
		return true
	default:
		return false
	}
}

// Trouble reports whether the last run left something that a person should look at.
func (s State) Trouble() bool {
	switch s {
	case StateFailed, StateRolledBack, StateBroken:
		return true
	default:
		return false
	}
}

// Info is what a Node's annotations say of its switch. Whoever has the node can write them, so that all is bounded and can be shown.
type Info struct {
	State                       State
	From, To, Run, Message      string
	CRISocket, Took, AgentImage string
	// BadRun: AnnotationRun is there and holds no run's ID.
	BadRun bool
	// WasUnschedulable is AnnotationWasUnschedulable; Cordoning, whether it is there: the run has cordoned the node, or is about to.
	WasUnschedulable string
	Cordoning        bool
	// FailedBefore are the names in AnnotationFailedBefore.
	FailedBefore []string
	// FromDockershim: Docker was reached through the kubelet itself. kubeadm's annotation stands in for runs that did not come to note the endpoint.
	FromDockershim bool
}

// The bounds of what annotations say, in bytes. A message of this program's is shorter.
const (
	maxWord    = 128
	maxMessage = 1 << 10
	maxImage   = 512
)

// Read reads a Node's annotations.
func Read(node *corev1.Node) Info {
	note := func(annotation string) string { return untrusted.Line(node.Annotations[annotation], maxWord) }
	info := Info{
		State: State(note(AnnotationPhase)), From: note(AnnotationFrom), To: note(AnnotationTo), CRISocket: note(AnnotationCRISocket),
		Message:      untrusted.Line(node.Annotations[AnnotationMessage], maxMessage),
		AgentImage:   untrusted.Line(node.Annotations[AnnotationAgentImage], maxImage),
		Took:         node.Annotations[AnnotationTook],
		FailedBefore: parseNames(node.Annotations[AnnotationFailedBefore]),
		FromDockershim: strings.Contains(node.Annotations[AnnotationFromEndpoint], "dockershim") ||
			strings.Contains(node.Annotations[AnnotationOldCRISocket], "dockershim"),
	}
	info.WasUnschedulable, info.Cordoning = node.Annotations[AnnotationWasUnschedulable]
	if run := node.Annotations[AnnotationRun]; run != "" {
		var err error
		info.Run, err = protocol.ParseRun(run)
		info.BadRun = err != nil
	}
	return info
}

// IsRunOpen reports whether a Node's run has not ended, also where it needs a person.
func (i Info) IsRunOpen() bool {
	return i.State.Open() || i.State == StateBroken || i.State == StateRollingBack
}

// MaxChecks is how many checks a canary may report, and maxName how long the name of one is, in bytes. AnnotationFailedBefore has room for all of them, and
// for those that the plugin makes itself.
const (
	MaxChecks = 50
	maxNames  = MaxChecks + 10
	maxName   = 40
)

// parseNames reads AnnotationFailedBefore.
func parseNames(text string) []string {
	var names []string
	for name := range strings.SplitSeq(text, ",") {
		if name = CheckName(name); name != "" && len(names) < maxNames {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Names are the names of checks as AnnotationFailedBefore can hold them.
func Names(checks []string) []string {
	var names []string
	for _, check := range checks {
		if name := CheckName(check); name != "" && len(names) < maxNames {
			names = append(names, name)
		}
	}
	return names
}

// CheckName is the name of a check as AnnotationFailedBefore can hold it. Names that are compared with those in the annotation are read by it, too: the
// name of a CheckName is itself.
func CheckName(check string) string {
	return untrusted.Line(strings.ReplaceAll(check, ",", ""), maxName)
}
