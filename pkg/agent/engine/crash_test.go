package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// fuse kills the process at the n-th point where it could die; 0 never. Goexit stands for death: nothing after it runs, and
// unlike a panic the engine cannot recover it.
type fuse struct{ n, passed int }

func (f *fuse) point() {
	f.passed++
	if f.passed == f.n {
		runtime.Goexit()
	}
}

// world is what survives a crash: the host's state and the files.
type world struct {
	records []journal.Record
	state   map[string]string // step: "half" or its memo
	now     time.Time
	fuse    *fuse
	fails   map[string]error // by "apply STEP" and "revert STEP"
	log     []string

	// Writes of the journal are counted; those from failFrom to failTo fail, 0 none.
	writes, failFrom, failTo int
	condemned                bool
	slept                    func()
	slow                     map[string]time.Duration // by step
}

func (w *world) Now() time.Time { return w.now }
func (w *world) Sleep(ctx context.Context, d time.Duration) error {
	w.now = w.now.Add(d)
	if w.slept != nil {
		w.slept()
	}
	return ctx.Err()
}

type fakeStep struct {
	id string
	w  *world
}

func (s fakeStep) ID() string    { return s.id }
func (s fakeStep) Title() string { return "do " + s.id }

func (s fakeStep) Record(context.Context, Report) (any, error) {
	s.w.fuse.point()
	if err := s.w.fails["record "+s.id]; err != nil {
		return nil, err
	}
	return "was-" + s.id + "-" + s.w.state[s.id], nil
}

func (s fakeStep) Apply(_ context.Context, memo json.RawMessage, r Report) error {
	return s.change("apply ", memo, func(was string) { s.w.state[s.id] = was })
}

func (s fakeStep) Revert(_ context.Context, memo json.RawMessage, r Report) error {
	return s.change("revert ", memo, func(string) { delete(s.w.state, s.id) })
}

func (s fakeStep) Revertible(context.Context, json.RawMessage) error { return s.w.fails["check "+s.id] }

func (s fakeStep) change(what string, memo json.RawMessage, finish func(string)) error {
	var was string
	if err := json.Unmarshal(memo, &was); err != nil {
		return err
	}
	// What Record saw before the very first Apply, whatever was half done since.
	if want := "was-" + s.id + "-"; was != want {
		return fmt.Errorf("memo is %q, not %q", was, want)
	}
	s.w.log = append(s.w.log, what+s.id)
	s.w.fuse.point()
	s.w.state[s.id] = "half"
	s.w.fuse.point()
	if err := s.w.fails[what+s.id]; err != nil {
		return err
	}
	finish(was)
	s.w.now = s.w.now.Add(s.w.slow[s.id])
	s.w.fuse.point()
	return nil
}

// memory is a journal that can die before and after each write. What it holds went through JSON, as on a disk.
type memory struct{ w *world }

func (m memory) Records() []journal.Record { return slices.Clone(m.w.records) }

func (m memory) Append(r journal.Record) error {
	m.w.fuse.point()
	m.w.writes++
	if m.w.failFrom > 0 && m.w.writes >= m.w.failFrom && m.w.writes <= m.w.failTo {
		return syscall.ENOSPC
	}
	if r.Kind == journal.KindOpen {
		m.w.condemned = false
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	var written journal.Record
	if err := json.Unmarshal(data, &written); err != nil {
		return err
	}
	m.w.records = append(m.w.records, written)
	m.w.fuse.point()
	return nil
}

var plan = map[protocol.Phase][]string{
	protocol.PhasePrepare: {"a", "b"},
	protocol.PhaseCutover: {"c", "d", "e"},
}

func (w *world) steps() map[protocol.Phase][]Step {
	steps := map[protocol.Phase][]Step{}
	for phase, ids := range plan {
		for _, id := range ids {
			steps[phase] = append(steps[phase], fakeStep{id, w})
		}
	}
	return steps
}

// start is one life of the process: it carries out the phases in turn, and reports whether it died before the end.
func (w *world) start(ctx context.Context, phases ...protocol.Phase) (results []protocol.Result, err error, died bool) {
	done := make(chan struct{})
	died = true
	go func() {
		defer close(done)
		e := &Engine{
			Journal: memory{w}, Events: discard{}, Clock: w, Steps: w.steps(), Program: "/opt/agent",
			Condemn: func() error { w.condemned = true; return nil }, Condemned: func() bool { return w.condemned },
		}
		for _, phase := range phases {
			var r protocol.Result
			if r, err = e.Run(ctx, phase, time.Hour); err != nil {
				break
			}
			results = append(results, r)
			if r.Outcome != protocol.OutcomeSucceeded {
				break
			}
		}
		died = false
	}()
	<-done
	return results, err, died
}

func newWorld() *world {
	return &world{state: map[string]string{}, now: time.Unix(1e9, 0), fuse: &fuse{}, fails: map[string]error{}}
}

// TestCrashAnywhere kills the process at every point of every scenario, once and twice, and demands that the next start ends in the
// same result and on a host that is either done or as it was.
func TestCrashAnywhere(t *testing.T) {
	type scenario struct {
		name    string
		fail    string
		phases  []protocol.Phase
		outcome protocol.Outcome
		applied int
	}
	scenarios := []scenario{
		{"success", "", whole, protocol.OutcomeSucceeded, 5},
		{"rollback", "", append(whole[:2:2], protocol.PhaseRollback), protocol.OutcomeSucceeded, 0},
	}
	for phase, ids := range plan {
		outcome := protocol.OutcomeRefused
		if phase == protocol.PhaseCutover {
			outcome = protocol.OutcomeRolledBack
		}
		for _, id := range ids {
			for _, what := range []string{"record ", "apply "} {
				scenarios = append(scenarios, scenario{what + id + " fails", what + id, whole, outcome, 0})
			}
		}
	}
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			points := 0
			for first := 0; first == 0 || first <= points; first++ {
				for _, second := range []int{0, 1, 2, 5, 9} {
					w := newWorld()
					if sc.fail != "" {
						w.fails[sc.fail] = errors.New("no luck")
					}
					lives := []*fuse{{n: first}, {n: second}, {}}
					var results []protocol.Result
					for _, life := range lives {
						w.fuse = life
						var err error
						var died bool
						if results, err, died = w.start(context.Background(), sc.phases...); err != nil {
							t.Fatalf("crash at %d, %d: %v", first, second, err)
						}
						if !died {
							break
						}
					}
					if first == 0 {
						points = lives[0].passed
					}
					last := results[len(results)-1]
					if last.Outcome != sc.outcome || len(w.state) != sc.applied {
						t.Fatalf("crash at %d, %d: %+v, host %v", first, second, last, w.state)
					}
					for step, is := range w.state {
						if is == "half" {
							t.Fatalf("crash at %d, %d: step %s is half done", first, second, step)
						}
					}
				}
			}
			if points < 5 {
				t.Fatalf("only %d points to die at", points)
			}
		})
	}
}

// TestRevertFails: the others of the cutover are reverted all the same, what was prepared stays for the runtime that the node may be left on,
// the result is broken, and a later rollback tries again.
func TestRevertFails(t *testing.T) {
	w := newWorld()
	w.fails["apply e"], w.fails["revert d"] = errors.New("no luck"), errors.New("stuck")
	results, err, _ := w.start(context.Background(), protocol.PhasePrepare, protocol.PhaseCutover)
	if err != nil {
		t.Fatal(err)
	}
	last := results[len(results)-1]
	if last.Outcome != protocol.OutcomeBroken || last.FailedStep != "e" || !strings.HasSuffix(last.Hint, "run there: /opt/agent rollback") || len(w.state) != 3 || w.state["d"] != "half" || w.state["c"] != "" {
		t.Fatalf("%+v, host %v", last, w.state)
	}
	tries := 0
	for _, entry := range w.log {
		if entry == "revert d" {
			tries++
		}
	}
	if tries != revertTries {
		t.Errorf("%d attempts to revert, want %d", tries, revertTries)
	}
	if results, _, _ = w.start(context.Background(), protocol.PhaseRollback); results[0].Outcome != protocol.OutcomeBroken {
		t.Errorf("rollback while still stuck: %+v", results)
	}
	delete(w.fails, "revert d")
	if results, _, _ = w.start(context.Background(), protocol.PhaseRollback); results[0].Outcome != protocol.OutcomeSucceeded || len(w.state) != 0 {
		t.Errorf("rollback after the cure: %+v, host %v", results, w.state)
	}
}

// TestRollbackRefused: a step that cannot be reverted as the host is keeps a rollback from beginning, but not one that has begun, nor what
// a failure undoes.
func TestRollbackRefused(t *testing.T) {
	w := newWorld()
	if _, err, _ := w.start(context.Background(), protocol.PhasePrepare, protocol.PhaseCutover); err != nil {
		t.Fatal(err)
	}
	before := maps.Clone(w.state)
	w.fails["check c"] = errors.New("Docker is gone")
	for range 2 { // it can be asked for again
		results, err, _ := w.start(context.Background(), protocol.PhaseRollback)
		if err != nil || results[0].Outcome != protocol.OutcomeRefused || results[0].FailedStep != "c" || !maps.Equal(w.state, before) {
			t.Fatalf("%+v, %v, host %v", results, err, w.state)
		}
	}
	delete(w.fails, "check c")
	results, err, _ := w.start(context.Background(), protocol.PhaseRollback)
	if err != nil || results[0].Outcome != protocol.OutcomeSucceeded || len(w.state) != 0 {
		t.Errorf("after the cure: %+v, %v, host %v", results, err, w.state)
	}

	w = newWorld()
	w.fails["check c"], w.fails["apply e"] = errors.New("Docker is gone"), errors.New("no luck")
	results, err, _ = w.start(context.Background(), protocol.PhasePrepare, protocol.PhaseCutover)
	if last := results[len(results)-1]; err != nil || last.Outcome != protocol.OutcomeRolledBack || len(w.state) != 0 {
		t.Errorf("a cutover that failed: %+v, %v, host %v", last, err, w.state)
	}
}

// TestDeadline: a start after the deadline undoes what an earlier life had done.
func TestDeadline(t *testing.T) {
	w := newWorld()
	if _, err, _ := w.start(context.Background(), protocol.PhasePrepare); err != nil {
		t.Fatal(err)
	}
	w.fuse = &fuse{n: 20}
	if _, _, died := w.start(context.Background(), protocol.PhaseCutover); !died || len(w.state) < 3 {
		t.Fatalf("did not die in the cutover: host %v", w.state)
	}
	w.fuse, w.now = &fuse{}, w.now.Add(2*time.Hour)
	results, err, _ := w.start(context.Background(), protocol.PhaseCutover)
	if err != nil || results[0].Outcome != protocol.OutcomeRolledBack || len(w.state) != 0 {
		t.Errorf("%+v %v, host %v", results, err, w.state)
	}
}

// TestInterrupted: the end of the context undoes nothing and the next start goes on; so does a failure while the host shuts down.
func TestInterrupted(t *testing.T) {
	w := newWorld()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.fails["apply b"] = errors.New("killed")
	if _, err, _ := w.start(ctx, protocol.PhasePrepare); !errors.Is(err, ErrInterrupted) {
		t.Fatalf("error %v", err)
	}
	if w.state["a"] == "" {
		t.Errorf("undone: host %v", w.state)
	}
	delete(w.fails, "apply b")
	if results, err, _ := w.start(context.Background(), protocol.PhasePrepare); err != nil || results[0].Outcome != protocol.OutcomeSucceeded {
		t.Errorf("%+v %v", results, err)
	}
}

func TestShutdownUndoesNothing(t *testing.T) {
	w := newWorld()
	w.fails["apply b"] = errors.New("transaction is destructive")
	e := &Engine{Journal: memory{w}, Events: discard{}, Clock: w, Steps: w.steps(), Stopping: func(context.Context) bool { return true }}
	if _, err := e.Run(context.Background(), protocol.PhasePrepare, time.Hour); !errors.Is(err, ErrInterrupted) || w.state["a"] == "" {
		t.Errorf("%v, host %v", err, w.state)
	}
}

// TestCrashLoop: a step in which the agent dies each time is given up and undone.
func TestCrashLoop(t *testing.T) {
	w := newWorld()
	lives := 0
	for {
		w.fuse = &fuse{}
		if lives > 0 { // the second life on, the first point is before the intent of step b
			w.fuse.n = 3
		} else {
			w.fuse.n = 12
		}
		lives++
		results, err, died := w.start(context.Background(), protocol.PhasePrepare)
		if err != nil || lives > 30 {
			t.Fatalf("life %d: %v", lives, err)
		}
		if !died {
			if results[0].Outcome == protocol.OutcomeSucceeded {
				t.Errorf("%+v", results)
			}
			return
		}
	}
}

// TestPanic: a bug in a step puts the host back.
func TestPanic(t *testing.T) {
	w := newWorld()
	steps := w.steps()
	steps[protocol.PhasePrepare] = append(steps[protocol.PhasePrepare], bug{fakeStep{"x", w}})
	e := &Engine{Journal: memory{w}, Events: discard{}, Clock: w, Steps: steps}
	r, err := e.Run(context.Background(), protocol.PhasePrepare, time.Hour)
	if err != nil || r.Outcome != protocol.OutcomeRefused || len(w.state) != 0 || r.Detail == "" {
		t.Errorf("%+v %v, host %v", r, err, w.state)
	}
}

type bug struct{ fakeStep }

func (bug) Apply(context.Context, json.RawMessage, Report) error { panic("nil map") }

type discard struct{}

func (discard) Append(protocol.Event) error { return nil }

// TestCutoverNeedsPrepare: without it nothing is done.
func TestCutoverNeedsPrepare(t *testing.T) {
	w := newWorld()
	results, err, _ := w.start(context.Background(), protocol.PhaseCutover)
	if err != nil || results[0].Outcome != protocol.OutcomeRolledBack || len(w.log) != 0 {
		t.Errorf("%+v %v %v", results, err, w.log)
	}
}
