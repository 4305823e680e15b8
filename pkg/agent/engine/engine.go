// Package engine carries out the steps of a phase, and undoes them when one fails, the deadline passes or it is asked to.
// It writes to the journal before and after each step, so that it can be killed at any instant: started again on the
// same journal, it resumes the phase or its undo.
//
// It knows neither Docker nor Kubernetes and touches nothing but the journal. The host unit calls it with the steps of
// pkg/agent/steps.
package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Step is one change of the host that can be undone.
type Step interface {
	// ID is stable over releases: journals hold it.
	ID() string
	// Title says in a few words what the step does.
	Title() string
	// Record returns what Apply and Revert will need, as a value that encoding/json can write. It changes nothing. Its error
	// fails the step; one made with Skip skips it.
	Record(ctx context.Context, report Report) (memo any, err error)
	// Apply makes the change. It can be repeated, also after a half-done Apply.
	Apply(ctx context.Context, memo json.RawMessage, report Report) error
	// Revert takes the change back. It can be repeated, also after a half-done Apply or Revert.
	Revert(ctx context.Context, memo json.RawMessage, report Report) error
}

// Checker is a Step that can tell whether Revert would find what it needs. A rollback that is asked for asks all steps before it reverts
// any of them: a node that works is not taken apart for a way back that is closed. What has to be undone is undone unasked.
type Checker interface {
	Revertible(ctx context.Context, memo json.RawMessage) error
}

// Report takes what a step has to say while it works. Errors in writing it do not concern the step.
type Report interface {
	// Progress says how far the step is: done and total count unit. Calls can come as often as the step likes.
	Progress(message string, done, total int64, unit string)
	Info(message string)
	Warn(message string)
	Facts(facts protocol.Facts)
}

// Journal is the write-ahead journal; see pkg/agent/journal.
type Journal interface {
	Records() []journal.Record
	Append(r journal.Record) error
}

// Events takes what the plugin will see.
type Events interface {
	Append(e protocol.Event) error
}

// Clock is the time, injected for tests.
type Clock interface {
	Now() time.Time
	// Sleep waits for d or until ctx ends, whose error it then returns.
	Sleep(ctx context.Context, d time.Duration) error
}

// Engine runs the phases of one run.
type Engine struct {
	Journal Journal
	Events  Events
	Clock   Clock
	// Steps lists the steps of each phase in order. PhaseRollback has none: it undoes those of the others.
	Steps map[protocol.Phase][]Step
	// Stopping reports whether the host shuts down. Steps then fail for that reason alone, and nothing is undone: the next
	// boot goes on. Optional.
	Stopping func(ctx context.Context) bool
	// Refuse is why a phase that begins cannot be carried out, nil if it can.
	Refuse error
	// Program is how a person calls the agent on this host: where it is installed depends on the host. Optional.
	Program string
	// Relieve frees space on the host's disks and reports whether it did. Optional.
	Relieve func() bool
	// Condemn notes where neither the journal nor free space is needed that the open phase is to be undone, and Condemned reports
	// whether it was: should the process die while the journal cannot be written, the next start must not go on. Optional.
	Condemn   func() error
	Condemned func() bool

	// lost are records that could not be written yet.
	lost []journal.Record
}

// ErrInterrupted is returned when ctx ended or the host shuts down. The journal stays as it is; Run goes on from there.
var ErrInterrupted = errors.New("interrupted; the next start goes on")

const (
	// maxAttempts bounds how often a step is applied, or reverted, by agents that did not live to write how it went.
	maxAttempts = 5
	// revertTimeout bounds one attempt to revert a step; revertTries attempts are made.
	revertTimeout = 3 * time.Minute
	revertTries   = 5
)

// Run carries out a phase until it has a result, from wherever the journal stands. The timeout counts from when the phase was
// first opened. A phase that has a result is not run again, but for a rollback that failed. The error is ErrInterrupted, and then
// the phase is still open, or that of the journal, and then it never was.
//
// A journal that can no longer be written is a failure of the phase: everything is undone, which the journal's past suffices for,
// and Run returns when at last it could be written.
func (e *Engine) Run(ctx context.Context, phase protocol.Phase, timeout time.Duration) (protocol.Result, error) {
	s := replay(e.Journal.Records())
	if r, ok := s.results[phase]; ok && (s.open == nil || s.open.phase != phase) && !again(phase, r) {
		return r, nil
	}
	if s.open != nil && s.open.phase != phase {
		return protocol.Result{}, fmt.Errorf("run phase %s: phase %s is still open", phase, s.open.phase)
	}
	if s.open == nil {
		if err := e.write(journal.Record{Kind: journal.KindOpen, Phase: phase, Deadline: e.Clock.Now().Add(timeout)}); err != nil {
			return protocol.Result{}, err
		}
		s = replay(e.Journal.Records())
	}
	// A clock that was set back must not make the phase endless, and one that is set during this process's life does not matter: the
	// deadline is counted from its start, on the monotonic clock that Now carries.
	now := e.Clock.Now()
	s.open.deadline = now.Add(min(s.open.deadline.Sub(now), timeout))
	if phase == protocol.PhaseRollback && !s.open.reverting {
		if refusal := e.closed(ctx, s); refusal != nil {
			return e.close(ctx, phase, failed(protocol.OutcomeRefused, *refusal))
		}
	}
	failure := s.open.undo
	if failure == nil && e.Condemned != nil && e.Condemned() && phase != protocol.PhaseRollback {
		failure = &journal.Failure{Message: "the agent could not read or write its journal in this phase"}
		e.undo(phase, failure)
	}
	if failure == nil && phase != protocol.PhaseRollback {
		var err error
		if failure, err = e.forward(ctx, s); err != nil {
			return protocol.Result{}, err
		}
	}
	if failure == nil && phase != protocol.PhaseRollback {
		return e.close(ctx, phase, protocol.Result{Outcome: protocol.OutcomeSucceeded, Message: doneMessage(phase)})
	}
	if phase == protocol.PhaseVerify {
		return e.close(ctx, phase, failed(protocol.OutcomeRefused, *failure))
	}
	return e.backward(ctx, phase, failure)
}

// again reports whether a closed phase can be run again: a rollback that failed, by someone who cured the cause.
func again(phase protocol.Phase, r protocol.Result) bool {
	return phase == protocol.PhaseRollback && r.Outcome != protocol.OutcomeSucceeded
}

// closed is why the way back is closed, nil if no step knows of a reason.
func (e *Engine) closed(ctx context.Context, s *state) *journal.Failure {
	for _, a := range slices.Backward(s.applied) {
		step, ok := e.lookup(a.phase, a.step).(Checker)
		if !ok {
			continue
		}
		if err := protect(func() error { return step.Revertible(ctx, a.memo) }); err != nil {
			failure := describe(unknownStep(a.step), err)
			return &failure
		}
	}
	return nil
}

// Open returns the phase that is open, if one is.
func Open(records []journal.Record) (protocol.Phase, bool) {
	if s := replay(records); s.open != nil {
		return s.open.phase, true
	}
	return "", false
}

// Result returns the result that a phase was closed with.
func Result(records []journal.Record, phase protocol.Phase) (protocol.Result, bool) {
	r, ok := replay(records).results[phase]
	return r, ok
}

// Standing reports whether steps of the run stand that were not reverted.
func Standing(records []journal.Record) bool { return len(replay(records).applied) > 0 }

// Memo returns what a step recorded, in whichever phase, while its change stands.
func Memo(records []journal.Record, step string) (json.RawMessage, bool) {
	for _, a := range replay(records).applied {
		if a.step == step {
			return a.memo, true
		}
	}
	return nil, false
}

// LastMemo returns what a step recorded last, whether its change stands or was reverted since.
func LastMemo(records []journal.Record, step string) (json.RawMessage, bool) {
	for _, r := range slices.Backward(records) {
		if r.Kind == journal.KindIntent && r.Step == step {
			return r.Memo, true
		}
	}
	return nil, false
}

// forward applies the steps that are not done. It returns the failure that asks for undoing, already journaled.
func (e *Engine) forward(ctx context.Context, s *state) (*journal.Failure, error) {
	phase := s.open.phase
	if failure := e.precondition(s); failure != nil {
		e.undo(phase, failure)
		return failure, nil
	}
	for _, step := range e.Steps[phase] {
		a := s.find(phase, step.ID())
		if s.skipped[key{phase, step.ID()}] || a != nil && a.done {
			continue
		}
		err := e.apply(ctx, s, step, a)
		if err == nil {
			continue
		}
		if e.interrupted(ctx) {
			return nil, ErrInterrupted
		}
		failure := describe(step, err)
		e.step(phase, step, protocol.StepFailed, failure.Message, 0)
		e.undo(phase, &failure)
		return &failure, nil
	}
	return nil, nil
}

// undo turns the open phase round.
func (e *Engine) undo(phase protocol.Phase, failure *journal.Failure) {
	e.keep(journal.Record{Kind: journal.KindUndo, Phase: phase, Step: failure.Step, Failure: failure})
	if len(e.lost) > 0 && e.Condemn != nil {
		_ = e.Condemn() // without it, a process that dies now goes on until the deadline
	}
}

// precondition refuses a cutover without a prepared host, and a phase for which there is no room.
func (e *Engine) precondition(s *state) *journal.Failure {
	if e.Refuse != nil {
		failure := describe(unknownStep(""), e.Refuse)
		return &failure
	}
	if s.open.phase != protocol.PhaseCutover {
		return nil
	}
	if r, ok := s.results[protocol.PhasePrepare]; !ok || r.Outcome != protocol.OutcomeSucceeded {
		return &journal.Failure{Message: "the host was not prepared by this run"}
	}
	for _, a := range s.applied {
		if a.phase == protocol.PhasePrepare {
			return nil
		}
	}
	return &journal.Failure{Message: "what this run had prepared was undone since"}
}

func (e *Engine) apply(ctx context.Context, s *state, step Step, a *applied) error {
	phase := s.open.phase
	left := s.open.deadline.Sub(e.Clock.Now())
	if left <= 0 {
		return fmt.Errorf("the phase %s was not done by its deadline, %s", phase, s.open.deadline.UTC().Format(time.RFC3339))
	}
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	report := &reporter{engine: e, phase: phase, step: step}
	started := e.Clock.Now()
	e.step(phase, step, protocol.StepStarted, "", 0)
	if a == nil {
		var memo any
		err := protect(func() (err error) { memo, err = step.Record(ctx, report); return err })
		if skip := (*skipError)(nil); errors.As(err, &skip) {
			e.step(phase, step, protocol.StepSkipped, skip.reason, e.Clock.Now().Sub(started))
			return e.write(journal.Record{Kind: journal.KindSkipped, Phase: phase, Step: step.ID()})
		}
		if err != nil {
			return err
		}
		raw, err := json.Marshal(memo)
		if err != nil {
			return fmt.Errorf("record step %s: %w", step.ID(), err)
		}
		a = &applied{memo: raw}
	}
	if a.attempts >= maxAttempts {
		return fmt.Errorf("the agent died in this step %d times", a.attempts)
	}
	if err := e.write(journal.Record{Kind: journal.KindIntent, Phase: phase, Step: step.ID(), Memo: a.memo}); err != nil {
		return err
	}
	if err := protect(func() error { return step.Apply(ctx, a.memo, report) }); err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return &lateError{deadline: s.open.deadline, cause: err}
		}
		return err
	}
	if err := e.write(journal.Record{Kind: journal.KindDone, Phase: phase, Step: step.ID()}); err != nil {
		return err
	}
	e.step(phase, step, protocol.StepDone, report.last, e.Clock.Now().Sub(started))
	return nil
}

// backward reverts what stands, newest first: for a failed prepare its own steps, else those of all phases. A step that
// cannot be reverted does not keep the others of its phase from being so. But what was prepared stays while any step of the cutover
// does: the node may be left on the runtime that it is for.
func (e *Engine) backward(ctx context.Context, phase protocol.Phase, cause *journal.Failure) (protocol.Result, error) {
	s := replay(e.records())
	for i := len(s.applied) - 1; i >= 0; i-- {
		a := s.applied[i]
		if phase == protocol.PhasePrepare && a.phase != phase || a.failure != nil {
			continue
		}
		if a.phase == protocol.PhasePrepare && replay(e.records()).stands(protocol.PhaseCutover) {
			break
		}
		if err := e.revert(ctx, phase, a); err != nil {
			return protocol.Result{}, err
		}
	}
	broken := replay(e.records()).failures()
	switch {
	case len(broken) > 0:
		return e.close(ctx, phase, brokenResult(cause, broken, e.Program))
	case phase == protocol.PhaseRollback:
		return e.close(ctx, phase, protocol.Result{Outcome: protocol.OutcomeSucceeded, Message: doneMessage(phase)})
	case phase == protocol.PhasePrepare:
		return e.close(ctx, phase, failed(protocol.OutcomeRefused, *cause))
	default:
		return e.close(ctx, phase, failed(protocol.OutcomeRolledBack, *cause))
	}
}

// revert reverts one step with retries. It returns an error only when the engine has to stop.
func (e *Engine) revert(ctx context.Context, open protocol.Phase, a *applied) error {
	step := e.lookup(a.phase, a.step)
	started := e.Clock.Now()
	var err error
	switch {
	case step == nil:
		step, err = unknownStep(a.step), fmt.Errorf("this agent does not know step %s", a.step)
	case a.reverts >= maxAttempts:
		err = fmt.Errorf("the agent died while it reverted this step %d times", a.reverts)
	default:
		e.keep(journal.Record{Kind: journal.KindReverting, Phase: a.phase, Step: a.step})
		e.step(open, step, protocol.StepReverting, "", 0)
		err = e.tryRevert(ctx, open, step, a)
	}
	if err == nil {
		e.keep(journal.Record{Kind: journal.KindReverted, Phase: a.phase, Step: a.step})
		e.step(open, step, protocol.StepReverted, "", e.Clock.Now().Sub(started))
		return nil
	}
	if e.interrupted(ctx) {
		return ErrInterrupted
	}
	failure := describe(step, err)
	e.keep(journal.Record{Kind: journal.KindRevertFailed, Phase: a.phase, Step: a.step, Failure: &failure})
	e.step(open, step, protocol.StepRevertFailed, failure.Message, e.Clock.Now().Sub(started))
	return nil
}

func (e *Engine) tryRevert(ctx context.Context, open protocol.Phase, step Step, a *applied) error {
	report := &reporter{engine: e, phase: open, step: step}
	wait := time.Second
	for try := 1; ; try++ {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, revertTimeout)
			defer cancel()
			return protect(func() error { return step.Revert(ctx, a.memo, report) })
		}()
		if err == nil || try == revertTries || ctx.Err() != nil {
			return err
		}
		if e.Relieve != nil {
			e.Relieve() // a full disk is not always to be seen in the error, such as that of a program
		}
		report.Warn(fmt.Sprintf("undo %s: %v; trying again in %s", step.ID(), err, wait))
		if err := e.Clock.Sleep(ctx, wait); err != nil {
			return err
		}
		wait *= 2
	}
}

// interrupted reports whether an error may come from the end of the process or the host. A host that shuts down ends this
// process soon: until then it waits, so that nothing is undone in the meantime.
func (e *Engine) interrupted(ctx context.Context) bool {
	if ctx.Err() != nil {
		return true
	}
	if e.Stopping == nil || !e.Stopping(ctx) {
		return false
	}
	_ = e.Clock.Sleep(ctx, time.Minute)
	return true
}

func (e *Engine) lookup(phase protocol.Phase, id string) Step {
	for _, step := range e.Steps[phase] {
		if step.ID() == id {
			return step
		}
	}
	return nil
}

func (e *Engine) close(ctx context.Context, phase protocol.Phase, r protocol.Result) (protocol.Result, error) {
	for _, record := range e.Journal.Records() {
		if record.Kind == journal.KindOpen && record.Phase == phase {
			r.ElapsedMillis = max(0, e.Clock.Now().Sub(record.Time).Milliseconds())
		}
	}
	e.keep(journal.Record{Kind: journal.KindClose, Phase: phase, Result: &r})
	for wait := time.Second; e.flush() != nil; wait = min(2*wait, maxWait) {
		if e.Clock.Sleep(ctx, wait) != nil {
			return r, ErrInterrupted
		}
	}
	return r, nil
}

// maxWait bounds the pause between two attempts to write a journal.
const maxWait = 30 * time.Second

// write writes a record that has to be on the disk before the engine goes on.
func (e *Engine) write(r journal.Record) error {
	r.Time = e.Clock.Now().UTC()
	if err := e.flush(); err != nil {
		return err
	}
	return e.Journal.Append(r)
}

// keep writes a record of what is done in any case; one that cannot be written is written later.
func (e *Engine) keep(r journal.Record) {
	r.Time = e.Clock.Now().UTC()
	e.lost = append(e.lost, r)
	_ = e.flush() // close waits for it
}

func (e *Engine) flush() error {
	for len(e.lost) > 0 {
		if err := e.Journal.Append(e.lost[0]); err != nil {
			return err
		}
		e.lost = e.lost[1:]
	}
	return nil
}

// records are those of the journal and those that it is still to get.
func (e *Engine) records() []journal.Record {
	return append(slices.Clone(e.Journal.Records()), e.lost...)
}

// protect turns a panic of a step into its failure, so that the host is put back.
func protect(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{value: p, stack: string(debug.Stack())}
		}
	}()
	return f()
}
