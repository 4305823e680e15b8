package engine

import (
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Overview is what a journal says, for people.
type Overview struct {
	// Open is the phase that is open, empty if none is; Deadline is when it is undone, Undoing why it is.
	Open     protocol.Phase   `json:"open,omitempty"`
	Deadline time.Time        `json:"deadline,omitzero"`
	Undoing  *journal.Failure `json:"undoing,omitempty"`
	// Results are those of the phases that ended, in the order in which they did.
	Results []PhaseResult `json:"results,omitempty"`
	Steps   []StepStatus  `json:"steps,omitempty"`
	// LastError is the last failure of a step, whether or not the host was put back since.
	LastError *journal.Failure `json:"lastError,omitempty"`
	// Standing reports whether changes of the run stand.
	Standing bool `json:"standing"`
}

// PhaseResult is how a phase ended.
type PhaseResult struct {
	Phase  protocol.Phase  `json:"phase"`
	Time   time.Time       `json:"time"`
	Result protocol.Result `json:"result"`
}

// StepStatus is where a step stands: begun (an intent alone), done, skipped, reverting, reverted or revert-failed.
type StepStatus struct {
	Phase protocol.Phase `json:"phase"`
	ID    string         `json:"id"`
	State string         `json:"state"`
	Time  time.Time      `json:"time"`
	Error string         `json:"error,omitempty"`
}

// Survey sums up a journal.
func Survey(records []journal.Record) Overview {
	s := replay(records)
	o := Overview{Standing: len(s.applied) > 0}
	if s.open != nil {
		o.Open, o.Deadline, o.Undoing = s.open.phase, s.open.deadline, s.open.undo
	}
	states := map[journal.Kind]string{
		journal.KindIntent: "begun", journal.KindDone: "done", journal.KindSkipped: "skipped", journal.KindReverting: "reverting",
		journal.KindReverted: "reverted", journal.KindRevertFailed: "revert-failed",
	}
	at := map[key]int{}
	for _, r := range records {
		if r.Failure != nil {
			o.LastError = r.Failure
		}
		if r.Kind == journal.KindClose && r.Result != nil {
			o.Results = append(o.Results, PhaseResult{r.Phase, r.Time, *r.Result})
		}
		state, ok := states[r.Kind]
		if !ok {
			continue
		}
		status := StepStatus{Phase: r.Phase, ID: r.Step, State: state, Time: r.Time}
		if r.Failure != nil {
			status.Error = r.Failure.Message
		}
		if i, seen := at[key{r.Phase, r.Step}]; seen {
			o.Steps[i] = status
			continue
		}
		at[key{r.Phase, r.Step}] = len(o.Steps)
		o.Steps = append(o.Steps, status)
	}
	return o
}
