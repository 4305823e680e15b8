package unit

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// systemctl answers like systemd and notes what it was asked to do.
type systemctl struct{ calls []string }

func (s *systemctl) Run(_ context.Context, name string, args ...string) (string, error) {
	s.calls = append(s.calls, strings.Join(args, " "))
	return "", nil
}

type clock struct{}

func (clock) Now() time.Time                                   { return time.Now() }
func (clock) Sleep(ctx context.Context, d time.Duration) error { return ctx.Err() }

// mark is a step that makes a file on the host and notes its run.
type mark struct {
	id, path string
	fail     *error
	stuck    *bool
}

func (m mark) ID() string    { return m.id }
func (m mark) Title() string { return m.id }
func (m mark) Record(context.Context, engine.Report) (any, error) {
	return nil, *m.fail
}

func (m mark) Apply(context.Context, json.RawMessage, engine.Report) error {
	return os.WriteFile(m.path, nil, 0o600)
}

func (m mark) Revert(context.Context, json.RawMessage, engine.Report) error {
	if m.stuck != nil && *m.stuck {
		return errors.New("stuck")
	}
	return os.Remove(m.path)
}

type fixture struct {
	*Unit
	root      string
	systemctl *systemctl
	failures  map[protocol.Phase]*error
	began     []string
	stuck     bool // whether steps cannot be undone
}

// link is where the unit comes up at boot by.
func (f *fixture) link() string {
	return filepath.Join(f.root, "etc/systemd/system/multi-user.target.wants", host.Unit)
}

func (f *fixture) systemd() host.Systemd {
	return host.Systemd{Run: f.systemctl, Dir: filepath.Join(f.root, "etc/systemd/system")}
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{root: t.TempDir(), systemctl: &systemctl{}, failures: map[protocol.Phase]*error{}}
	for _, phase := range phases {
		f.failures[phase] = new(error)
	}
	f.Unit = &Unit{
		Layout: Layout{Root: f.root}, Systemd: f.systemd(), Machine: "m", Program: "/agent", Clock: clock{},
		Work: func(spec protocol.Spec, dir string, _ func() []journal.Record) Work {
			f.began = append(f.began, spec.Run+"/"+string(spec.Phase))
			if target, err := os.Readlink(f.link()); err != nil || target != host.UnitPath || host.Absent(filepath.Join(f.root, host.UnitPath)) {
				t.Errorf("phase %s of %s would not survive a reboot: the unit is not installed", spec.Phase, spec.Run)
			}
			step := func(phase protocol.Phase) engine.Step {
				return mark{string(phase), filepath.Join(f.root, spec.Run+"-"+string(phase)), f.failures[phase], &f.stuck}
			}
			return Work{Timeout: time.Hour, Steps: map[protocol.Phase][]engine.Step{
				protocol.PhasePrepare: {step(protocol.PhasePrepare)}, protocol.PhaseCutover: {step(protocol.PhaseCutover)},
			}}
		},
	}
	return f
}

func (f *fixture) ask(t *testing.T, run string, phase protocol.Phase) {
	t.Helper()
	spec := protocol.Spec{Version: protocol.Version, Run: run, Node: "node-1", Phase: phase, CutoverSeconds: 60}
	if err := f.Layout.Requests().Ask(spec); err != nil {
		t.Fatal(err)
	}
	if err := f.Layout.SetCurrent(run); err != nil {
		t.Fatal(err)
	}
}

// run runs the unit and returns the outcomes that the run's events hold, by phase.
func (f *fixture) run(t *testing.T, run string) map[protocol.Phase]protocol.Outcome {
	t.Helper()
	if err := f.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !host.Absent(filepath.Join(f.root, host.UnitPath)) {
		t.Error("the unit is left behind")
	}
	events, err := journal.OpenEvents(f.Layout.RunDir(run), run, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = events.Close() }()
	outcomes := map[protocol.Phase]protocol.Outcome{}
	for _, phase := range phases {
		if r, ok := events.Result(phase); ok {
			outcomes[phase] = r.Outcome
		}
	}
	return outcomes
}

func (f *fixture) marks(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(f.root, "r*-*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	return found
}

func TestPhasesInTurn(t *testing.T) {
	f := newFixture(t)
	if err := f.Run(context.Background()); err != nil {
		t.Fatalf("without any run: %v", err)
	}
	f.ask(t, "r1", protocol.PhasePrepare)
	if got := f.run(t, "r1"); got[protocol.PhasePrepare] != protocol.OutcomeSucceeded {
		t.Fatal(got)
	}
	f.ask(t, "r1", protocol.PhasePrepare)
	f.run(t, "r1")
	f.ask(t, "r1", protocol.PhaseCutover)
	if got := f.run(t, "r1"); got[protocol.PhaseCutover] != protocol.OutcomeSucceeded {
		t.Fatal(got)
	}
	if got := f.marks(t); !slices.Equal(got, []string{"r1-cutover", "r1-prepare"}) {
		t.Error(got)
	}
	f.ask(t, "r1", protocol.PhaseRollback)
	if got := f.run(t, "r1"); got[protocol.PhaseRollback] != protocol.OutcomeSucceeded || len(f.marks(t)) != 0 {
		t.Error(got, f.marks(t))
	}
	if want := []string{"r1/prepare", "r1/cutover", "r1/rollback"}; !slices.Equal(f.began, want) {
		t.Errorf("began %v", f.began)
	}
	if !host.Absent(f.link()) || !host.Absent(f.Layout.unitPath()) {
		t.Error("the unit is left")
	}
}

// TestLostResult: a crash after the phase was closed and before its result was reported.
func TestLostResult(t *testing.T) {
	f := newFixture(t)
	f.ask(t, "r1", protocol.PhasePrepare)
	f.run(t, "r1")
	if err := os.Remove(filepath.Join(f.Layout.RunDir("r1"), journal.EventsName)); err != nil {
		t.Fatal(err)
	}
	if got := f.run(t, "r1"); got[protocol.PhasePrepare] != protocol.OutcomeSucceeded {
		t.Error(got)
	}
}

// TestAbandoned: a run that had prepared the host and was given up is undone before the next begins, and a cutover that had been
// asked for but had not begun never begins.
func TestAbandoned(t *testing.T) {
	f := newFixture(t)
	f.ask(t, "r1", protocol.PhasePrepare)
	f.run(t, "r1")
	f.ask(t, "r1", protocol.PhaseCutover)
	f.ask(t, "r2", protocol.PhasePrepare)
	f.run(t, "r2")
	if want := []string{"r1/prepare", "r1/rollback", "r2/prepare"}; !slices.Equal(f.began, want) {
		t.Errorf("began %v, want %v", f.began, want)
	}
	if got := f.marks(t); !slices.Equal(got, []string{"r2-prepare"}) {
		t.Error(got)
	}
}

// TestSwitchedRunIsNotAbandoned: what a successful run left is not undone by the next.
func TestSwitchedRunIsNotAbandoned(t *testing.T) {
	f := newFixture(t)
	for _, phase := range []protocol.Phase{protocol.PhasePrepare, protocol.PhaseCutover} {
		f.ask(t, "r1", phase)
		f.run(t, "r1")
	}
	f.ask(t, "r2", protocol.PhasePrepare)
	f.run(t, "r2")
	if got := f.marks(t); len(got) != 3 {
		t.Error(got)
	}
}

// TestAbandonedCannotBeUndone: no run begins on top of what could not be undone, neither of a run that was given up nor of a switch
// whose rollback is broken.
func TestAbandonedCannotBeUndone(t *testing.T) {
	for _, ask := range [][]protocol.Phase{
		{protocol.PhasePrepare},
		{protocol.PhasePrepare, protocol.PhaseCutover, protocol.PhaseRollback},
	} {
		f := newFixture(t)
		f.stuck = true
		for _, phase := range ask {
			f.ask(t, "r1", phase)
			f.run(t, "r1")
		}
		f.ask(t, "r2", protocol.PhasePrepare)
		if err := f.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "run r1 before it cannot be undone: could not undo") {
			t.Errorf("%v: %v", ask, err)
		}
		if slices.Contains(f.began, "r2/prepare") {
			t.Errorf("%v: began %v", ask, f.began)
		}
		f.stuck = false
		f.run(t, "r2")
		if got := f.marks(t); !slices.Equal(got, []string{"r2-prepare"}) {
			t.Errorf("%v, after the cure: %v", ask, got)
		}
	}
}

func TestCutoverFails(t *testing.T) {
	f := newFixture(t)
	f.ask(t, "r1", protocol.PhasePrepare)
	f.run(t, "r1")
	*f.failures[protocol.PhaseCutover] = errors.New("no luck")
	f.ask(t, "r1", protocol.PhaseCutover)
	if got := f.run(t, "r1"); got[protocol.PhaseCutover] != protocol.OutcomeRolledBack || len(f.marks(t)) != 0 {
		t.Error(got, f.marks(t))
	}
}

func TestInterrupted(t *testing.T) {
	f := newFixture(t)
	f.ask(t, "r1", protocol.PhasePrepare)
	*f.failures[protocol.PhasePrepare] = errors.New("killed")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := f.Run(ctx); !errors.Is(err, engine.ErrInterrupted) {
		t.Fatal(err)
	}
	if host.Absent(filepath.Join(f.root, host.UnitPath)) {
		t.Error("the unit is gone: nothing would go on after the reboot")
	}
	*f.failures[protocol.PhasePrepare] = nil
	if got := f.run(t, "r1"); got[protocol.PhasePrepare] != protocol.OutcomeSucceeded {
		t.Error(got)
	}
}

// TestCurrentIsLost: the link to the run is gone, or leads nowhere, after a crash in a phase: the phase is found and ended.
func TestCurrentIsLost(t *testing.T) {
	for _, target := range []string{"", "runs/r0"} {
		f := newFixture(t)
		f.ask(t, "r1", protocol.PhasePrepare)
		*f.failures[protocol.PhasePrepare] = errors.New("killed")
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := f.Run(ctx); !errors.Is(err, engine.ErrInterrupted) {
			t.Fatal(err)
		}
		*f.failures[protocol.PhasePrepare] = nil
		if err := os.Remove(f.Layout.current()); err != nil {
			t.Fatal(err)
		}
		if target != "" {
			if err := os.Symlink(target, f.Layout.current()); err != nil {
				t.Fatal(err)
			}
		}
		if got := f.run(t, "r1"); got[protocol.PhasePrepare] != protocol.OutcomeSucceeded {
			t.Errorf("link to %q: %v", target, got)
		}
		if run, err := f.Layout.Current(); err != nil || run != "r1" {
			t.Errorf("link to %q: the current run is %q (%v)", target, run, err)
		}
	}
}

func TestOneAgentAtATime(t *testing.T) {
	f := newFixture(t)
	f.ask(t, "r1", protocol.PhasePrepare)
	unlock, err := lock(filepath.Join(f.root, host.Dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("%v", err)
	}
	unlock()
	f.run(t, "r1")
}

func TestAskKeepsTheFirst(t *testing.T) {
	l := Layout{Root: t.TempDir()}
	spec := protocol.Spec{Version: protocol.Version, Run: "r1", Node: "n", Phase: protocol.PhasePrepare, CutoverSeconds: 60, Image: "a", Pod: protocol.PodRef{UID: "1"}}
	if err := l.Requests().Ask(spec); err != nil {
		t.Fatal(err)
	}
	spec.Image, spec.Pod.UID = "b", "2"
	if err := l.Requests().Ask(spec); err != nil {
		t.Fatal(err)
	}
	got, ok, err := l.Requests().Spec("r1", protocol.PhasePrepare)
	if err != nil || !ok || got.Image != "a" || got.Pod.UID != "2" {
		t.Errorf("%+v %t %v", got, ok, err)
	}
}

// TestMakeDir: the directory is for root alone, also one that an earlier agent made for all to read.
func TestMakeDir(t *testing.T) {
	l := Layout{Root: t.TempDir()}
	spec := protocol.Spec{Version: protocol.Version, Run: "r1", Node: "n", Phase: protocol.PhasePrepare, CutoverSeconds: 60, Image: "a"}
	if err := os.MkdirAll(filepath.Join(l.dir(), "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(l.dir(), 0o755); err != nil { // whatever the umask
		t.Fatal(err)
	}
	if err := l.Requests().Ask(spec); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(l.dir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
