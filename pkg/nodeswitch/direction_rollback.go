package nodeswitch

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// deadPodSeconds is how long a drain waits for a pod beyond its grace period on a node that is not Ready: its kubelet may never
// say that the pod is gone.
const deadPodSeconds = 10

// backward is the course back to Docker.
type backward struct {
	*session
	// attempt tells this rollback from an earlier one that failed.
	attempt string
	// inService: no earlier run had taken the node out of service, so that giving up gives it back.
	inService bool
	// message was the node's before.
	message string
}

// Rollback moves a node back to the runtime that its last run found, wherever that run stands. The node has passed
// PreflightRollback. Errors and report are as of Switch; OutcomeStuck also stands for a node on the old runtime that a check of
// the verification failed on: it is left cordoned.
func (r *Switcher) Rollback(ctx context.Context, name string) (*Report, error) {
	s := r.newSession(name)
	s.direction = direction{
		course: &backward{session: s, attempt: nodestate.NewRun(r.clock.Now())}, operation: claim.Rollback, target: inventory.RuntimeDocker,
		proof: protocol.PhaseRollback, reopened: nodestate.StateRollingBack,
		events: protocol.PhaseRollback, // the log begins with the run's first event, which may be weeks old
	}
	return s.report, s.holding(ctx)
}

// mark reads the node once the claim is held. It changes nothing but the epoch, and Jobs of the run, which would only follow what this
// rollback puts an end to.
func (s *backward) mark(ctx context.Context) error {
	node, err := s.readNode(ctx, func(node *corev1.Node) preflight.Finding { return preflight.JudgeRollback(node, s.options.Drain.Force) })
	if err != nil {
		return err
	}
	row := inventory.FromNode(node)
	s.run, s.state, s.from = row.Run, row.Switch, row.Reported
	s.report.Run, s.report.From, s.report.Resumed = s.run, s.from, s.state == nodestate.StateRollingBack
	s.unready = row.Ready != corev1.ConditionTrue
	s.message = row.Message
	marked := nodestate.Read(node)
	s.inService = !marked.Cordoning || s.state == nodestate.StateDone || preflight.IsPreparedOnly(s.state, s.from)
	s.unproven = marked.FailedBefore
	if s.inService {
		if err := s.checks.tryAdmission(ctx, protocol.PhaseRollback); err != nil {
			return err
		}
	}
	stale := []protocol.Phase{protocol.PhasePrepare, protocol.PhaseCutover, protocol.PhaseVerify, nodejob.PhaseCanary}
	if s.state == nodestate.StateBroken {
		stale = append(stale, protocol.PhaseRollback) // it holds the result of the attempt that failed
	}
	return s.host.remove(ctx, stale...)
}

// walk goes through the stages. A node that never left Docker needs no drain: only what was prepared is undone.
func (s *backward) walk(ctx context.Context) error {
	return s.inOrder(ctx, []stageWork{
		{StageDrain, s.pods.drain, preflight.IsPreparedOnly(s.state, s.from)},
		{StageRollback, s.undo, false},
		{StageVerify, s.verify, false},
		{StageUncordon, s.giveBack, false},
		{StageSoak, s.soak, s.options.Soak <= 0},
	})
}

// beforeCordon has nothing to do: a canary or a pod that waits would run on the runtime that the node leaves.
func (s *backward) beforeCordon(context.Context) (nodestate.Set, error) { return nil, nil }

// undo has the host undo the run, and waits for what it came to.
func (s *backward) undo(ctx context.Context) error {
	// In a cutover that nobody follows, the kubelet may be down for a while: the Job's pod then starts late.
	begun := s.state == nodestate.StateRollingBack || s.state == nodestate.StateCutover
	if !begun && !preflight.IsPreparedOnly(s.state, s.from) {
		if err := s.pods.keepEmpty(ctx, nil); err != nil {
			failed := s.giveUp(ctx, StageRollback, err, s.pods.drainOutcome(ctx, err))
			failed.Resumable = true
			return failed
		}
	}
	_, err := s.node.Annotate(ctx, nodestate.At(nodestate.StateRollingBack, ""))
	if err != nil {
		return s.giveUp(ctx, StageRollback, err, failedOrInterrupted(ctx))
	}
	spec := s.host.spec(protocol.PhaseRollback)
	spec.Attempt = s.attempt
	result, err := s.host.runUnattended(ctx, StageRollback, spec, begun, false)
	if err != nil {
		return err
	}
	switch result.Outcome {
	case protocol.OutcomeSucceeded, protocol.OutcomeRolledBack:
		return nil
	case protocol.OutcomeRefused:
		s.message = message(StageRollback, resultError(result)) // for status
		failed := s.giveUp(ctx, StageRollback, resultError(result), OutcomeRefused)
		failed.Detail, failed.Hint = result.Detail, resultHint(result)
		return failed
	default:
		return s.ending.broken(ctx, StageRollback, result)
	}
}

// verify proves the old runtime. A check that fails is not answered by another change of the host: nothing better is known.
func (s *backward) verify(ctx context.Context) error {
	err := s.checks.verify(ctx)
	if s.disproved == nil {
		return err
	}
	undo, cancel := s.undoContext(ctx)
	defer cancel()
	if _, err := s.node.Annotate(undo, nodestate.Set{nodestate.AnnotationMessage: message(StageVerify, s.disproved)}); err != nil {
		s.tell(Warning, "%s", err)
	}
	return &Error{
		Node: s.name, Stage: StageVerify, Outcome: OutcomeStuck, State: "the host has undone the run; " + s.whereabouts(ctx),
		Hint:      "cure what the check names; a node that works in spite of it is given back with `kubectl uncordon`",
		Resumable: true, Cause: s.disproved,
	}
}
