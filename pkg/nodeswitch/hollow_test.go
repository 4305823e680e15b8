package nodeswitch

import (
	"slices"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

const (
	dockerVersion     = hollow.DockerVersion
	containerdVersion = hollow.ContainerdVersion
)

// inMidst does something once a stage that has begun is where it waits: the node is cordoned, or the agent at work.
func inMidst(h *hollow.Node, stage Stage, do func()) {
	isThere := func() bool {
		switch stage {
		case StageDrain:
			cordons := h.Cordons()
			return len(cordons) > 0 && cordons[len(cordons)-1]
		case StagePrepare, StageCutover, StageRollback:
			return slices.Contains(h.Phases(), protocol.Phase(stage))
		default:
			return true
		}
	}
	for deadline := time.Now().Add(time.Minute); !isThere() && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	do()
}
