// Package inventory turns Node objects into what an operator wants to know of them: the runtime, its version, whether the
// kubelet goes with it, how far a switch is, and what to do next. It is pure: no I/O, no clock, no cluster. It does not
// look at pods (that is assess) and changes nothing. The status command prints its rows; the switch asks it which nodes
// it must refuse, and writes the annotations that are named here.
package inventory

// Prefix is the domain of every annotation and label of this program.
const Prefix = "kubectl-runtime.dev/"

// The annotations on a Node that a switch leaves there; docs/architecture.md says who writes them.
const (
	// AnnotationPhase holds a SwitchState.
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
	// AnnotationMessage is one sentence on the state.
	AnnotationMessage = Prefix + "message"
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

// SwitchState is how far the switch of a node is, as the annotation AnnotationPhase tells.
type SwitchState string

// The states. StateNone is a node that was never switched.
const (
	StateNone      SwitchState = ""
	StatePreparing SwitchState = "preparing"
	StatePrepared  SwitchState = "prepared"
	StateDraining  SwitchState = "draining"
	StateCutover   SwitchState = "cutover"
	StateVerifying SwitchState = "verifying"
	StateDone      SwitchState = "done"
	StateFailed    SwitchState = "failed"
	// StateRollingBack: the host was asked to go back, and that is not verified yet.
	StateRollingBack SwitchState = "rolling-back"
	StateRolledBack  SwitchState = "rolled-back"
	StateBroken      SwitchState = "broken"
)

// Open reports whether a run in this state is not over: it runs, or waits for somebody to resume it.
func (s SwitchState) Open() bool {
	switch s {
	case StatePreparing, StatePrepared, StateDraining, StateCutover, StateVerifying, StateRollingBack:
		return true
	default:
		return false
	}
}

// Trouble reports whether the last run left something that a person should look at.
func (s SwitchState) Trouble() bool {
	switch s {
	case StateFailed, StateRolledBack, StateBroken:
		return true
	default:
		return false
	}
}
