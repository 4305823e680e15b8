// Package steps is the list of what the agent does on a node, phase by phase, and what each step does. A step reads what it
// needs when it is recorded, changes the host through pkg/agent/host and the packages of one subject each, and can undo it.
//
// Whether and when a step runs is pkg/agent/engine's business; the host unit calls List.
package steps

import (
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Limits of the phases. The cutover's is in the Spec; a rollback has none but those of its steps.
const (
	PrepareTimeout = 30 * time.Minute
	VerifyTimeout  = 5 * time.Minute
)

// Timeout returns how long a phase may take.
func Timeout(spec protocol.Spec) time.Duration {
	switch spec.Phase {
	case protocol.PhaseCutover:
		return time.Duration(spec.CutoverSeconds) * time.Second
	case protocol.PhaseVerify:
		return VerifyTimeout
	case protocol.PhasePrepare, protocol.PhaseRollback, protocol.PhasePlan:
	}
	return PrepareTimeout
}

// List returns the steps of each phase, in order.
func List(h *node.Host) map[protocol.Phase][]engine.Step {
	return map[protocol.Phase][]engine.Step{
		protocol.PhasePrepare: {
			inspectHost(h),
			containerdInstall(h),
			containerdConfig(h),
			containerdService(h),
			importImages(h),
			rehearsal(h),
		},
		protocol.PhaseCutover: {
			kubeletStop(h),
			dockerPods(h),
			dockerStop(h),
			nodeSysctls(h),
			kubeletConfig(h),
			smokeTest(h),
			kubeletStart(h),
			nodeReady(h),
		},
		protocol.PhaseVerify: {
			verify(h),
		},
	}
}
