package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/redact"
)

// state is what a journal's records add up to.
type state struct {
	open    *openPhase
	applied []*applied // what stands, in the order in which it was applied
	skipped map[key]bool
	results map[protocol.Phase]protocol.Result
}

type openPhase struct {
	phase    protocol.Phase
	deadline time.Time
	undo     *journal.Failure
	// reverting: steps were reverted in it.
	reverting bool
}

type key struct {
	phase protocol.Phase
	step  string
}

type applied struct {
	key
	memo     json.RawMessage
	done     bool
	attempts int
	reverts  int
	failure  *journal.Failure // why reverting it was given up in the open phase
}

func replay(records []journal.Record) *state {
	s := &state{skipped: map[key]bool{}, results: map[protocol.Phase]protocol.Result{}}
	for _, r := range records {
		a := s.find(r.Phase, r.Step)
		switch r.Kind {
		case journal.KindOpen:
			s.open = &openPhase{phase: r.Phase, deadline: r.Deadline}
			for _, a := range s.applied {
				a.reverts, a.failure = 0, nil
			}
		case journal.KindIntent:
			if a == nil {
				a = &applied{key: key{r.Phase, r.Step}, memo: r.Memo}
				s.applied = append(s.applied, a)
			}
			a.attempts++
		case journal.KindDone:
			if a != nil {
				a.done = true
			}
		case journal.KindSkipped:
			s.skipped[key{r.Phase, r.Step}] = true
		case journal.KindUndo:
			if s.open != nil {
				s.open.undo = r.Failure
			}
		case journal.KindReverting:
			if s.open != nil {
				s.open.reverting = true
			}
			if a != nil {
				a.reverts++
			}
		case journal.KindReverted:
			s.applied = slices.DeleteFunc(s.applied, func(x *applied) bool { return x == a })
		case journal.KindRevertFailed:
			if a != nil {
				a.failure = r.Failure
			}
		case journal.KindClose:
			s.open = nil
			if r.Result != nil {
				s.results[r.Phase] = *r.Result
			}
		}
	}
	return s
}

func (s *state) find(phase protocol.Phase, step string) *applied {
	for _, a := range s.applied {
		if a.phase == phase && a.step == step {
			return a
		}
	}
	return nil
}

// stands reports whether any step of a phase does.
func (s *state) stands(phase protocol.Phase) bool {
	return slices.ContainsFunc(s.applied, func(a *applied) bool { return a.phase == phase })
}

func (s *state) failures() []journal.Failure {
	var failures []journal.Failure
	for _, a := range slices.Backward(s.applied) {
		if a.failure != nil {
			failures = append(failures, *a.failure)
		}
	}
	return failures
}

type skipError struct{ reason string }

func (e *skipError) Error() string { return "skipped: " + e.reason }

// Skip makes the error by which a step's Record says that there is nothing to do on this host.
func Skip(reason string) error { return &skipError{reason} }

type lateError struct {
	deadline time.Time
	cause    error
}

func (e *lateError) Error() string {
	return fmt.Sprintf("not done by the deadline, %s: %v", e.deadline.UTC().Format(time.RFC3339), e.cause)
}

func (e *lateError) Unwrap() error { return e.cause }

type panicError struct {
	value any
	stack string
}

func (e *panicError) Error() string  { return fmt.Sprintf("the agent has a bug: panic: %v", e.value) }
func (e *panicError) Detail() string { return e.stack }

// describe turns an error into what is shown. An error in its chain can carry captured output as Detail() string and
// what a person can do as Hint() string. Secrets are taken out of both texts: the journal keeps them.
func describe(step Step, err error) journal.Failure {
	f := journal.Failure{Step: step.ID(), Message: redact.String(err.Error())}
	var detail interface {
		error
		Detail() string
	}
	if errors.As(err, &detail) {
		f.Detail = redact.String(detail.Detail())
	}
	var hint interface {
		error
		Hint() string
	}
	switch {
	case errors.As(err, &hint):
		f.Hint = hint.Hint()
	case host.NoSpace(err):
		f.Hint = host.NoSpaceHint
	}
	return f
}

func failed(outcome protocol.Outcome, f journal.Failure) protocol.Result {
	return protocol.Result{Outcome: outcome, FailedStep: f.Step, Message: f.Message, Detail: f.Detail, Hint: f.Hint}
}

func brokenResult(cause *journal.Failure, broken []journal.Failure, program string) protocol.Result {
	var steps []string
	for _, f := range broken {
		steps = append(steps, f.Step+": "+f.Message)
	}
	r := failed(protocol.OutcomeBroken, broken[0])
	r.Message = "could not undo " + strings.Join(steps, "; ")
	if cause != nil {
		r.FailedStep = cause.Step
		r.Message = cause.Message + "; then " + r.Message
	}
	if r.Hint == "" {
		r.Hint = "cure the cause on the host, then run there: " + cmp.Or(program, "runtime-agent") + " rollback"
	}
	return r
}

func doneMessage(phase protocol.Phase) string {
	switch phase {
	case protocol.PhasePrepare:
		return "the new runtime is configured, has the images and has run a pod sandbox"
	case protocol.PhaseCutover:
		return "the kubelet runs on the new runtime and the node is Ready"
	case protocol.PhaseVerify:
		return "the new runtime answers as it should"
	case protocol.PhaseRollback:
		return "everything that the run had changed was undone"
	case protocol.PhasePlan: // has no journal
	}
	return string(phase) + " is done"
}

// unknownStep stands for a step of a journal that this agent does not have.
type unknownStep string

func (s unknownStep) ID() string                                            { return string(s) }
func (s unknownStep) Title() string                                         { return string(s) }
func (s unknownStep) Record(context.Context, Report) (any, error)           { return nil, nil }
func (s unknownStep) Apply(context.Context, json.RawMessage, Report) error  { return nil }
func (s unknownStep) Revert(context.Context, json.RawMessage, Report) error { return nil }

func (e *Engine) step(phase protocol.Phase, step Step, to protocol.StepState, message string, took time.Duration) {
	e.event(protocol.Event{Phase: phase, Step: &protocol.Step{
		ID: step.ID(), Title: step.Title(), State: to, Message: message, ElapsedMillis: took.Milliseconds(),
	}})
}

// event hands on an event. That it cannot be written must not stop a phase that is under way: the journal decides.
func (e *Engine) event(event protocol.Event) { _ = e.Events.Append(event) }

// progressEvery bounds how often a step's progress is written.
const progressEvery = 500 * time.Millisecond

type reporter struct {
	engine *Engine
	phase  protocol.Phase
	step   Step
	last   string
	shown  time.Time
}

func (r *reporter) Progress(message string, done, total int64, unit string) {
	now := r.engine.Clock.Now()
	complete := total > 0 && done >= total
	if message == r.last && now.Sub(r.shown) < progressEvery && !complete {
		return
	}
	r.last, r.shown = message, now
	r.engine.event(protocol.Event{Phase: r.phase, Step: &protocol.Step{
		ID: r.step.ID(), Title: r.step.Title(), State: protocol.StepProgress, Message: message, Done: done, Total: total, Unit: unit,
	}})
}

func (r *reporter) Info(message string) { r.log("info", message) }
func (r *reporter) Warn(message string) { r.log("warning", message) }

func (r *reporter) log(level, message string) {
	r.engine.event(protocol.Event{Phase: r.phase, Log: &protocol.Log{Level: level, Message: message}})
}

func (r *reporter) Facts(facts protocol.Facts) {
	r.engine.event(protocol.Event{Phase: r.phase, Facts: &facts})
}
