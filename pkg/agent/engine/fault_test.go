package engine

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// demandWhole demands that every step stands or none of its phase does.
func demandWhole(t *testing.T, w *world, what string, n int) {
	t.Helper()
	for step, is := range w.state {
		if is == "half" {
			t.Fatalf("%s at write %d: step %s is half done", what, n, step)
		}
	}
	prepared, switched := 0, 0
	for _, id := range plan[protocol.PhasePrepare] {
		if _, ok := w.state[id]; ok {
			prepared++
		}
	}
	for _, id := range plan[protocol.PhaseCutover] {
		if _, ok := w.state[id]; ok {
			switched++
		}
	}
	if switched != 0 && (switched != len(plan[protocol.PhaseCutover]) || prepared != len(plan[protocol.PhasePrepare])) ||
		prepared != 0 && prepared != len(plan[protocol.PhasePrepare]) {
		t.Fatalf("%s at write %d: half-switched: %v", what, n, w.state)
	}
}

var whole = []protocol.Phase{protocol.PhasePrepare, protocol.PhaseCutover}

// writesOf counts the journal writes of an undisturbed run.
func writesOf(t *testing.T) int {
	t.Helper()
	w := newWorld()
	if _, err, _ := w.start(context.Background(), whole...); err != nil || w.writes < 10 {
		t.Fatalf("%d writes: %v", w.writes, err)
	}
	return w.writes
}

// TestJournalFailsAnywhere lets every write of the journal fail, for a while and long enough for the whole undo: the engine ends on a
// host that is done or as it was, without an error, and the journal says the same.
func TestJournalFailsAnywhere(t *testing.T) {
	for first := 1; first <= writesOf(t); first++ {
		for _, length := range []int{1, 3, 40} {
			w := newWorld()
			w.failFrom, w.failTo = first, first+length-1
			results, err, _ := w.start(context.Background(), whole...)
			demandWhole(t, w, "failure", first)
			if err != nil {
				// Only a phase that could not be opened has no result, and then it has changed nothing.
				if s := replay(w.records); s.open != nil {
					t.Fatalf("failure at write %d: %v, and phase %s is open", first, err, s.open.phase)
				}
				continue
			}
			last := results[len(results)-1]
			if _, open := Open(w.records); open || Standing(w.records) != (len(w.state) > 0) {
				t.Fatalf("failure at write %d (%d): the journal does not tell of %+v, host %v", first, length, last, w.state)
			}
		}
	}
}

// TestJournalFailsThenCrash: the process dies at any point while the journal cannot be written. What was undone stays undone: the
// next start must not go on from a journal that does not know.
func TestJournalFailsThenCrash(t *testing.T) {
	for first := 1; first <= writesOf(t); first++ {
		for point := 1; ; point++ {
			w := newWorld()
			w.failFrom, w.failTo = first, 1<<30
			w.fuse = &fuse{n: point}
			// The journal never recovers in this life: what waits for it is ended after a while.
			ctx, cancel := context.WithCancel(context.Background())
			slept := 0
			w.slept = func() {
				if slept++; slept > 20 {
					cancel()
				}
			}
			_, err, died := w.start(ctx, whole...)
			cancel()
			if !died && err != nil && !errors.Is(err, ErrInterrupted) {
				if _, open := Open(w.records); open {
					t.Fatalf("failure at write %d: %v", first, err)
				}
			}
			condemned := w.condemned
			w.fuse, w.failFrom, w.slept = &fuse{}, 0, nil
			results, err, _ := w.start(context.Background(), whole...)
			if err != nil {
				t.Fatalf("failure at write %d, crash at %d: %v", first, point, err)
			}
			demandWhole(t, w, "crash", first)
			if last := results[len(results)-1]; condemned && last.Outcome == protocol.OutcomeSucceeded {
				t.Fatalf("failure at write %d, crash at %d: a condemned phase went on", first, point)
			}
			if !died {
				break
			}
		}
	}
}

// TestRefuse: a phase without room for it changes nothing, and says why.
func TestRefuse(t *testing.T) {
	w := newWorld()
	e := &Engine{Journal: memory{w}, Events: discard{}, Clock: w, Steps: w.steps(), Refuse: errors.New("no room")}
	r, err := e.Run(context.Background(), protocol.PhasePrepare, time.Hour)
	if err != nil || r.Outcome != protocol.OutcomeRefused || r.Message != "no room" || len(w.log) > 0 {
		t.Errorf("%+v %v %v", r, err, w.log)
	}
}

type noEvents struct{ calls int }

func (n *noEvents) Append(protocol.Event) error { n.calls++; return errors.New("disk full") }

// TestEventsFail: what the plugin cannot see happens all the same.
func TestEventsFail(t *testing.T) {
	w := newWorld()
	events := &noEvents{}
	e := &Engine{Journal: memory{w}, Events: events, Clock: w, Steps: w.steps()}
	if r, err := e.Run(context.Background(), protocol.PhasePrepare, time.Hour); err != nil || r.Outcome != protocol.OutcomeSucceeded || events.calls == 0 {
		t.Errorf("%+v %v", r, err)
	}
}

// TestRelieve: space is freed before a revert is tried again.
func TestRelieve(t *testing.T) {
	w := newWorld()
	w.fails["apply b"], w.fails["revert a"] = errors.New("no luck"), errors.New("no space left on device")
	e := &Engine{Journal: memory{w}, Events: discard{}, Clock: w, Steps: w.steps(), Relieve: func() bool {
		delete(w.fails, "revert a")
		return true
	}}
	if r, err := e.Run(context.Background(), protocol.PhasePrepare, time.Hour); err != nil || r.Outcome != protocol.OutcomeRefused || len(w.state) > 0 {
		t.Errorf("%+v %v, host %v", r, err, w.state)
	}
}

// TestFullDiskHint: a step that finds no space says what to do about it.
func TestFullDiskHint(t *testing.T) {
	w := newWorld()
	w.fails["apply b"] = fmt.Errorf("write config: %w", syscall.ENOSPC)
	e := &Engine{Journal: memory{w}, Events: discard{}, Clock: w, Steps: w.steps()}
	r, err := e.Run(context.Background(), protocol.PhasePrepare, time.Hour)
	if err != nil || r.FailedStep != "b" || r.Hint != host.NoSpaceHint {
		t.Errorf("%+v %v", r, err)
	}
}

// TestClockSteps: the process dies in the cutover, and finds another time at its next start.
func TestClockSteps(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for _, test := range []struct {
		name string
		step time.Duration
		// slow is how long the next step takes by the new clock.
		slow    time.Duration
		outcome protocol.Outcome
	}{
		{"in time", time.Minute, time.Minute, protocol.OutcomeSucceeded},
		{"into the past", -year, time.Minute, protocol.OutcomeSucceeded},
		{"into the past, and then too slow", -year, 61 * time.Minute, protocol.OutcomeRolledBack},
		{"a little into the past, and then too slow", -30 * time.Minute, 61 * time.Minute, protocol.OutcomeRolledBack},
		{"into the future", year, 0, protocol.OutcomeRolledBack},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld()
			if _, err, _ := w.start(context.Background(), protocol.PhasePrepare); err != nil {
				t.Fatal(err)
			}
			w.fuse = &fuse{n: 12}
			if _, _, died := w.start(context.Background(), protocol.PhaseCutover); !died || len(w.state) < 3 {
				t.Fatalf("did not die in the cutover: host %v", w.state)
			}
			w.fuse, w.now = &fuse{}, w.now.Add(test.step)
			w.slow = map[string]time.Duration{"d": test.slow}
			results, err, _ := w.start(context.Background(), protocol.PhaseCutover)
			if err != nil || results[0].Outcome != test.outcome || results[0].ElapsedMillis < 0 {
				t.Errorf("%+v %v, host %v", results, err, w.state)
			}
			demandWhole(t, w, "clock", 0)
		})
	}
}

var _ Journal = (*journal.Journal)(nil)
