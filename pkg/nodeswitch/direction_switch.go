package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// rollback undoes a cutover that the host took for good and that the verification disproved.
func (s *forward) rollback(ctx context.Context) error {
	// The canary's sandbox would keep the runtime busy while it is taken down. A Job of an earlier rollback holds that one's result.
	if err := s.host.remove(ctx, protocol.PhaseCutover, protocol.PhaseVerify, protocol.PhaseRollback, nodejob.PhaseCanary); errors.Is(err, claim.ErrLost) {
		return err
	} else if err != nil {
		s.tell(Warning, "%s", err)
	}
	spec := s.host.spec(protocol.PhaseRollback)
	spec.Attempt = nodestate.NewRun(s.clock.Now())
	result, err := s.host.runUnattended(ctx, StageRollback, spec, true, false)
	if err != nil {
		return err
	}
	if result.Outcome == protocol.OutcomeSucceeded || result.Outcome == protocol.OutcomeRolledBack {
		return s.ending.rolledBack(ctx, StageVerify, s.disproved, result)
	}
	result.Message = fmt.Sprintf("%v; and the way back failed: %s", s.disproved, result.Message)
	return s.ending.broken(ctx, StageRollback, result)
}

// Switch moves one node to containerd, or resumes what an earlier run began. The node has passed the preflight. An error is
// an *Error, except for what fails before the node is claimed. The report is never nil.
func (r *Switcher) Switch(ctx context.Context, name string) (*Report, error) {
	s := r.newSession(name)
	s.direction = direction{
		course: &forward{s}, operation: claim.Switch, target: inventory.RuntimeContainerd, proof: protocol.PhaseCutover,
		needsCanary: true, asksHost: true, reopened: nodestate.StateVerifying,
	}
	return s.report, s.holding(ctx)
}

// forward is the course from Docker to containerd.
type forward struct{ *session }

// beforeCordon runs the canary on the old runtime, and has the cutover's pod wait on the node.
func (s *forward) beforeCordon(ctx context.Context) (nodestate.Set, error) {
	if err := s.checks.proveBefore(ctx); err != nil {
		return nil, err
	}
	s.host.park(ctx)
	return nodestate.Set{
		nodestate.AnnotationPhase: string(nodestate.StateDraining), nodestate.AnnotationFailedBefore: strings.Join(s.unproven, ","),
	}, nil
}

func (s *forward) giveUp(ctx context.Context, stage Stage, cause error, outcome Outcome) *Error {
	return s.ending.retreat(ctx, stage, cause, nodestate.StatePrepared, outcome)
}

func (s *forward) notStarted(ctx context.Context, stage Stage, cause error) *Error {
	return s.giveUp(ctx, stage, cause, OutcomeFailed)
}

// walk goes through the stages that are left.
func (s *forward) walk(ctx context.Context) error {
	late := s.state == nodestate.StateCutover || s.state == nodestate.StateVerifying
	err := s.inOrder(ctx, []stageWork{
		{StagePrepare, s.prepare, late},
		{StageDrain, s.pods.drain, late},
		{StageCutover, s.cutover, s.state == nodestate.StateVerifying},
		{StageVerify, s.checks.verify, false},
		{StageUncordon, s.giveBack, false},
		{StageSoak, s.soak, s.options.Soak <= 0},
	})
	if s.disproved != nil {
		return s.inStage(ctx, StageRollback, s.rollback)
	}
	return err
}

// mark reads the node once the claim is held, and marks it. Another run may have come and gone since the preflight, while a question was open or another node
// was switched.
func (s *forward) mark(ctx context.Context) error {
	node, err := s.readNode(ctx, preflight.JudgeSwitch)
	if err != nil {
		return err
	}
	row := inventory.FromNode(node)
	s.old = inventory.RuntimeDocker
	s.lastHeartbeat = heartbeat(node)
	resumes := row.Switch.Open() && row.Run != ""
	wasUnschedulable := ""
	if resumes {
		why, err := s.Preflight().WhyNewRun(ctx, node)
		if err != nil {
			return err
		}
		if resumes = why == ""; !resumes {
			s.tell(Info, "starting a new run: %s", why)
			wasUnschedulable = nodestate.Read(node).WasUnschedulable // a cordon of that run is ours to undo
		}
	}
	if resumes {
		s.run, s.state, s.from = row.Run, row.Switch, row.From
		s.report.Resumed = true
		s.unproven = nodestate.Read(node).FailedBefore
		s.tell(Info, "resuming run %s, whose state is %s", s.run, s.state)
	} else {
		s.from = row.Reported
	}
	// Where the host may have begun, nothing is refused any more.
	if err := s.checks.tryAdmission(ctx, protocol.PhasePrepare); err != nil && (!resumes || preflight.IsPreparedOnly(s.state, row.Reported)) {
		return err
	}
	if !resumes {
		if err := s.host.remove(ctx); err != nil {
			return err
		}
		_, err := s.node.Annotate(ctx, nodestate.Begun(s.run, s.from, inventory.RuntimeContainerd, s.options.Image, wasUnschedulable))
		if err != nil {
			return err
		}
	}
	s.report.Run, s.report.From = s.run, s.from
	return nil
}
