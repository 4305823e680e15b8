package unit

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// oneWay is a step that cannot be reverted while shut is set.
type oneWay struct {
	mark
	shut *bool
}

func (s oneWay) Revertible(context.Context, json.RawMessage) error {
	if *s.shut {
		return errors.New("Docker is no longer installed")
	}
	return nil
}

// newOneWayFixture is a fixture whose run can be rolled back once shut is false.
func newOneWayFixture(t *testing.T) (f *fixture, shut *bool) {
	t.Helper()
	f, shut = newFixture(t), new(bool)
	*shut = true
	work := f.Unit.Work
	f.Unit.Work = func(spec protocol.Spec, dir string, records func() []journal.Record) Work {
		w := work(spec, dir, records)
		for _, steps := range w.Steps {
			for i, s := range steps {
				steps[i] = oneWay{s.(mark), shut}
			}
		}
		w.Steps[protocol.PhaseVerify] = []engine.Step{}
		return w
	}
	return f, shut
}

// TestRefusedRollbackIsOver: after a rollback that was refused, the run can do what is asked for next, and a later rollback as well. That also
// holds where the agent died after it had refused and before it had reported so.
func TestRefusedRollbackIsOver(t *testing.T) {
	for _, next := range []protocol.Phase{protocol.PhaseVerify, protocol.PhaseCutover} {
		for _, crash := range []bool{false, true} {
			f, shut := newOneWayFixture(t)
			f.ask(t, "r1", protocol.PhasePrepare)
			f.run(t, "r1")
			if next == protocol.PhaseVerify {
				f.ask(t, "r1", protocol.PhaseCutover)
				f.run(t, "r1")
			}
			before := f.marks(t)
			f.ask(t, "r1", protocol.PhaseRollback)
			got := f.run(t, "r1")
			if crash {
				if err := os.Remove(filepath.Join(f.Layout.RunDir("r1"), journal.EventsName)); err != nil {
					t.Fatal(err)
				}
				got = f.run(t, "r1")
			}
			if got[protocol.PhaseRollback] != protocol.OutcomeRefused || !slices.Equal(f.marks(t), before) {
				t.Fatalf("%s, crash %t: %v, %v, was %v", next, crash, got, f.marks(t), before)
			}
			f.ask(t, "r1", next)
			if got := f.run(t, "r1"); got[next] != protocol.OutcomeSucceeded {
				t.Errorf("%s, crash %t: asked for after the refusal: %v", next, crash, got)
			}
			*shut = false
			if err := f.Layout.Requests().AskRollback("r1"); err != nil {
				t.Fatal(err)
			}
			if got := f.run(t, "r1"); got[protocol.PhaseRollback] != protocol.OutcomeSucceeded || len(f.marks(t)) > 0 {
				t.Errorf("%s, crash %t: the rollback asked for again: %v, left %v", next, crash, got, f.marks(t))
			}
		}
	}
}

// TestRefusedRollbackEndsOlderRequests: a cutover that was asked for and had not begun when the rollback was asked for does not begin after
// the refusal: nobody waits for it, and the node may serve again.
func TestRefusedRollbackEndsOlderRequests(t *testing.T) {
	f, _ := newOneWayFixture(t)
	f.ask(t, "r1", protocol.PhasePrepare)
	f.run(t, "r1")
	f.ask(t, "r1", protocol.PhaseCutover)
	f.ask(t, "r1", protocol.PhaseRollback)
	for range 2 { // the second time as the next boot would
		if got := f.run(t, "r1"); got[protocol.PhaseRollback] != protocol.OutcomeRefused || len(f.marks(t)) != 1 {
			t.Errorf("%v, began %v", got, f.began)
		}
	}
	f.ask(t, "r1", protocol.PhaseCutover)
	if got := f.run(t, "r1"); got[protocol.PhaseCutover] != protocol.OutcomeSucceeded {
		t.Errorf("asked for after the refusal: %v", got)
	}
}
