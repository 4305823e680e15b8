package rollout

import (
	"context"
	"errors"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

const (
	// deadPodSeconds is how long a drain waits for a pod beyond its grace period on a node that is not Ready: its kubelet may never
	// say that the pod is gone.
	deadPodSeconds = 10
	// rollingBack is why a switch leaves a node alone.
	rollingBack = "a rollback of it was begun and is not over: `kubectl runtime rollback` goes on with it"
	// byHand is the way back that needs no kubelet. The agent is in the first of these folders that is not mounted noexec
	// (pkg/agent/supervise, binDirs).
	byHand = "on the node itself, as root: /var/lib/kubectl-runtime/bin/runtime-agent rollback (where /var/lib is mounted noexec, the " +
		"agent is in /usr/local/lib/kubectl-runtime or /opt/kubectl-runtime)"
)

// wayBack is what a rollback knows that a switch does not.
type wayBack struct {
	// attempt tells this rollback from an earlier one that failed.
	attempt string
	// unready: the node was not Ready when the rollback began.
	unready bool
	// inService: no earlier run had taken the node out of service, so that giving up gives it back.
	inService bool
	// message was the node's before.
	message string
}

// Rollback moves a node back to the runtime that its last run found, wherever that run stands. The node has passed
// PreflightRollback. Errors and report are as of Switch; OutcomeStuck also stands for a node on the old runtime that a check of
// the verification failed on: it is left cordoned.
func (r *Rollout) Rollback(ctx context.Context, name string) (*Report, error) {
	s := &session{
		Rollout: r, name: name, report: &Report{Node: name},
		target: inventory.RuntimeDocker, proof: protocol.PhaseRollback,
		back: &wayBack{attempt: newRun(r.clock.Now())},
	}
	return s.report, s.holding(ctx, s.markBack, s.goBack)
}

// markBack reads the node once the claim is held. It changes nothing but for Jobs of the run, which would only follow what this
// rollback puts an end to.
func (s *session) markBack(ctx context.Context) error {
	node, err := s.getNode(ctx, s.name)
	if err != nil {
		return err
	}
	if finding := judgeBack(node, s.options.Drain.Force); finding.Verdict == Refuse || finding.Verdict == Skip {
		return errors.New(finding.Reason)
	}
	s.watch.Start(ctx, node)
	row := inventory.FromNode(node)
	s.run, s.state, s.from = row.Run, row.Switch, row.Reported
	s.report.Run, s.report.From, s.report.Resumed = s.run, s.from, s.state == nodestate.StateRollingBack
	s.back.unready = row.Ready != corev1.ConditionTrue
	s.back.message = row.Message
	marked := nodestate.Read(node)
	s.back.inService = !marked.Cordoning || s.state == nodestate.StateDone || isPreparedOnly(s.state, s.from)
	s.unproven = marked.FailedBefore
	if s.back.inService {
		if err := s.tryAdmission(ctx, protocol.PhaseRollback); err != nil {
			return err
		}
	}
	stale := []protocol.Phase{protocol.PhasePrepare, protocol.PhaseCutover, protocol.PhaseVerify, nodejob.PhaseCanary}
	if s.state == nodestate.StateBroken {
		stale = append(stale, protocol.PhaseRollback) // it holds the result of the attempt that failed
	}
	return s.remove(ctx, stale...)
}

// goBack walks through the stages. A node that never left Docker needs no drain: only what was prepared is undone.
func (s *session) goBack(ctx context.Context) error {
	return s.walk(ctx, []stageWork{
		{StageDrain, s.drain, isPreparedOnly(s.state, s.from)},
		{StageRollback, s.askBack, false},
		{StageVerify, s.verifyBack, false},
		{StageUncordon, s.giveBackOld, false},
		{StageSoak, s.soak, s.options.Soak <= 0},
	})
}

// isPreparedOnly reports whether a run has not come to its cutover.
func isPreparedOnly(state nodestate.State, runtimeVersion string) bool {
	switch state {
	case nodestate.StatePreparing, nodestate.StatePrepared, nodestate.StateDraining:
		return strings.HasPrefix(runtimeVersion, inventory.RuntimeDocker+"://")
	default:
		return false
	}
}

// askBack has the host undo the run, and waits for what it came to.
func (s *session) askBack(ctx context.Context) error {
	// In a cutover that nobody follows, the kubelet may be down for a while: the Job's pod then starts late.
	begun := s.state == nodestate.StateRollingBack || s.state == nodestate.StateCutover
	if !begun && !isPreparedOnly(s.state, s.from) {
		if err := s.keepEmpty(ctx, nil); err != nil {
			failed := s.forsake(ctx, StageRollback, err, s.drainOutcome(ctx, err))
			failed.Resumable = true
			return failed
		}
	}
	_, err := s.node.Annotate(ctx, nodestate.At(nodestate.StateRollingBack, ""))
	if err != nil {
		return s.forsake(ctx, StageRollback, err, s.failedOrInterrupted(ctx))
	}
	spec := s.spec(protocol.PhaseRollback)
	spec.Attempt = s.back.attempt
	result, err := s.runUnattended(ctx, StageRollback, spec, begun, false)
	if err != nil {
		return err
	}
	switch result.Outcome {
	case protocol.OutcomeSucceeded, protocol.OutcomeRolledBack:
		return nil
	case protocol.OutcomeRefused:
		s.back.message = message(StageRollback, resultError(result)) // for status
		failed := s.forsake(ctx, StageRollback, resultError(result), OutcomeRefused)
		failed.Detail, failed.Hint = result.Detail, resultHint(result)
		return failed
	default:
		return s.broken(ctx, StageRollback, result)
	}
}

// forsake gives up before the host has begun: the node is left as this rollback found it, also cordoned if an earlier run had
// cordoned it for good reason.
func (s *session) forsake(ctx context.Context, stage Stage, cause error, outcome Outcome) *Error {
	was := nodestate.Set{nodestate.AnnotationPhase: string(s.state), nodestate.AnnotationMessage: s.back.message}
	if s.back.inService {
		failed := s.stepBack(ctx, stage, cause, outcome, was)
		if s.back.unready {
			failed.State = s.whereabouts(ctx)
		}
		return failed
	}
	undo, cancel := s.undoContext(ctx)
	defer cancel()
	failed := &Error{Node: s.name, Stage: stage, Outcome: OutcomeStuck, Resumable: true, Cause: cause}
	if ctx.Err() != nil {
		failed.Outcome = outcome
	}
	if errors.Is(s.proveClaim(undo), claim.ErrLost) {
		return failed // inStage says so
	}
	if err := s.remove(undo, protocol.PhaseRollback); err != nil {
		s.tell(Warning, "%s", err)
	}
	if _, err := s.node.Annotate(undo, was); err != nil {
		s.tell(Warning, "%s", err)
	}
	failed.State = s.whereabouts(ctx)
	return failed
}

// notStarted gives up on a Job whose pod cannot start: the agent on the host needs none.
func (s *session) notStarted(ctx context.Context, cause error) *Error {
	failed := s.forsake(ctx, StageRollback, cause, OutcomeFailed)
	failed.Resumable = true
	if s.back.unready {
		failed.Hint = "where the kubelet starts no pods, go back without it, " + byHand
	}
	return failed
}

// verifyBack proves the old runtime. A check that fails is not answered by another change of the host: nothing better is known.
func (s *session) verifyBack(ctx context.Context) error {
	err := s.verify(ctx)
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

// giveBackOld uncordons the node and marks it as rolled back.
func (s *session) giveBackOld(ctx context.Context) error {
	cordoned, err := s.node.Uncordon(ctx, nodestate.At(nodestate.StateRolledBack, "it was rolled back on request"), nodestate.RestoreCRISocket)
	if err != nil {
		return err
	}
	s.serviced(cordoned)
	s.endLeaving(ctx)
	s.checkMetrics(ctx)
	if err := s.remove(ctx); err != nil {
		s.tell(Warning, "%s", err)
	}
	return nil
}
