package nodeswitch

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// direction is in what a switch and a rollback differ.
type direction struct {
	course    course
	operation claim.Operation
	// target is the runtime to be on in the end, and proof the phase that brings the node there.
	target string
	proof  protocol.Phase
	// events is the phase whose events are reported; all are if it is empty.
	events protocol.Phase
	// needsCanary: a canary that the cluster does not admit refuses the run, before anything is changed.
	needsCanary bool
	// asksHost: the verification asks the agent, whose checks are about containerd.
	asksHost bool
	// reopened is the state of a node that is taken out of service again after its end.
	reopened nodestate.State
}

// course is what a direction does.
type course interface {
	// mark reads the node once the claim is held, and takes the run up or begins it.
	mark(ctx context.Context) error
	// walk goes through the stages.
	walk(ctx context.Context) error
	// beforeCordon is done while the node serves. It returns what is noted with the cordon.
	beforeCordon(ctx context.Context) (nodestate.Set, error)
	// giveUp ends the run before the host has begun with what cannot be undone by the plugin.
	giveUp(ctx context.Context, stage Stage, cause error, outcome Outcome) *Error
	// notStarted ends the run where the host's Job does not start.
	notStarted(ctx context.Context, stage Stage, cause error) *Error
}
