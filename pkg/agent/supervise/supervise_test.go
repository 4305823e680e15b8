package supervise

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/unit"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// hostUnit stands for systemd: starting the unit runs work.
type hostUnit struct {
	mu     sync.Mutex
	starts int
	active bool
	work   func(start int)
	fail   error
}

func (h *hostUnit) Run(_ context.Context, name string, args ...string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case name == "journalctl":
		return "permission denied\n", nil
	case args[0] == "show":
		if h.active {
			return "LoadState=loaded\nActiveState=active\n", nil
		}
		return "LoadState=loaded\nActiveState=inactive\n", nil
	case args[0] == "start":
		if h.fail != nil {
			return "", h.fail
		}
		h.starts++
		if h.work != nil {
			h.work(h.starts)
		}
	}
	return "", nil
}

func newSupervisor(t *testing.T, h *hostUnit) (*Supervisor, *bytes.Buffer) {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "run/systemd/system"), 0o700); err != nil {
		t.Fatal(err)
	}
	out := &bytes.Buffer{}
	program := "the agent"
	return &Supervisor{
		Spec:   protocol.Spec{Version: protocol.Version, Run: "r1", Node: "node-1", Phase: protocol.PhasePrepare, CutoverSeconds: 60},
		Layout: unit.Layout{Root: root}, Systemd: host.Systemd{Run: h, Dir: filepath.Join(root, "etc/systemd/system")},
		Program: strings.NewReader(program), Size: int64(len(program)), Out: out, Err: out, Interval: time.Millisecond,
	}, out
}

func report(t *testing.T, s *Supervisor, event protocol.Event) {
	t.Helper()
	events, err := journal.OpenEvents(s.Layout.RunDir(s.Spec.Run), s.Spec.Run, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = events.Close() }()
	if event.Phase == "" {
		event.Phase = protocol.PhasePrepare
	}
	if err := events.Append(event); err != nil {
		t.Fatal(err)
	}
}

// openPhase writes a journal in which a phase is open.
func openPhase(t *testing.T, dir, run string, phase protocol.Phase) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(dir, journal.Identity{Run: run, Node: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.Append(journal.Record{Kind: journal.KindOpen, Phase: phase}), j.Close()); err != nil {
		t.Fatal(err)
	}
}

func events(t *testing.T, out *bytes.Buffer) []protocol.Event {
	t.Helper()
	var all []protocol.Event
	for line := range strings.Lines(out.String()) {
		event, err := protocol.DecodeEvent([]byte(line))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, event)
	}
	return all
}

var success = protocol.Event{Result: &protocol.Result{Outcome: protocol.OutcomeSucceeded, Message: "fine"}}

func TestFollows(t *testing.T) {
	h := &hostUnit{}
	s, out := newSupervisor(t, h)
	h.work = func(int) {
		h.active = true
		report(t, s, protocol.Event{Log: &protocol.Log{Level: "info", Message: "one"}})
		report(t, s, success)
	}
	result, err := s.Run(context.Background())
	if err != nil || result.Outcome != protocol.OutcomeSucceeded {
		t.Fatal(result, err)
	}
	if got := events(t, out); len(got) != 2 || got[1].Seq != 2 {
		t.Errorf("%+v", got)
	}
	installed, err := os.ReadFile(filepath.Join(s.Layout.Root, host.Dir, "bin/runtime-agent"))
	if err != nil || string(installed) != "the agent" {
		t.Errorf("%q %v", installed, err)
	}
	if info, err := os.Stat(filepath.Join(s.Layout.Root, host.Dir)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the agent's directory: %v, %v", info.Mode(), err)
	}
	text, err := os.ReadFile(filepath.Join(s.Layout.Root, host.UnitPath))
	if err != nil || !strings.Contains(string(text), "ExecStart="+host.Dir+"/bin/runtime-agent run\n") {
		t.Errorf("%s %v", text, err)
	}
	if run, err := s.Layout.Current(); err != nil || run != "r1" {
		t.Error(run, err)
	}
	// Once more, as the Job's next pod would: the same events from the first on, and nothing is started.
	out.Reset()
	if result, err := s.Run(context.Background()); err != nil || result.Message != "fine" || len(events(t, out)) != 2 || h.starts != 1 {
		t.Error(result, err, h.starts)
	}
}

// TestKeepsGoing: a unit that ended without a result is started again.
func TestKeepsGoing(t *testing.T) {
	h := &hostUnit{}
	s, _ := newSupervisor(t, h)
	h.work = func(start int) {
		if start == 2 {
			report(t, s, success)
		}
	}
	if result, err := s.Run(context.Background()); err != nil || result.Outcome != protocol.OutcomeSucceeded || h.starts != 2 {
		t.Error(result, err, h.starts)
	}
}

// TestCutoverIsVerified: the pod that has a cutover done has it verified, too, once, and only where it succeeded.
func TestCutoverIsVerified(t *testing.T) {
	for _, outcome := range []protocol.Outcome{protocol.OutcomeSucceeded, protocol.OutcomeRolledBack} {
		h := &hostUnit{}
		s, out := newSupervisor(t, h)
		s.Spec.Phase = protocol.PhaseCutover
		asked := func(phase protocol.Phase) bool {
			_, ok, err := s.Layout.Requests().Spec("r1", phase)
			if err != nil {
				t.Error(err)
			}
			return ok
		}
		h.work = func(start int) {
			if start == 1 {
				openPhase(t, s.Layout.RunDir("r1"), "r1", protocol.PhaseCutover)
				if asked(protocol.PhaseVerify) {
					t.Error("the verification was asked for before the cutover's result")
				}
				report(t, s, protocol.Event{Phase: protocol.PhaseCutover, Result: &protocol.Result{Outcome: outcome}})
				return
			}
			report(t, s, protocol.Event{Phase: protocol.PhaseVerify, Result: &protocol.Result{Outcome: protocol.OutcomeSucceeded, Message: "verified"}})
		}
		verified := outcome == protocol.OutcomeSucceeded
		starts, message := 1, ""
		if verified {
			starts, message = 2, "verified"
		}
		for range 2 { // the second time as the pod's next container
			s.Spec.Phase = protocol.PhaseCutover
			out.Reset()
			result, err := s.Run(context.Background())
			if err != nil || result.Message != message || h.starts != starts || asked(protocol.PhaseVerify) != verified {
				t.Errorf("%s: %+v %v, %d starts, verification asked for: %t", outcome, result, err, h.starts, asked(protocol.PhaseVerify))
			}
			if got := events(t, out); len(got) != starts {
				t.Errorf("%s: %+v", outcome, got)
			}
		}
	}
}

// TestWaits: a pod that waits asks its host for nothing until it gets the signal, and then continues, also in its next container.
func TestWaits(t *testing.T) {
	h := &hostUnit{}
	s, out := newSupervisor(t, h)
	s.Wait = true
	ctx, cancel := context.WithTimeout(context.Background(), 5*waitInterval)
	defer cancel()
	if _, err := s.Run(ctx); !errors.Is(err, context.DeadlineExceeded) || h.starts != 0 || out.Len() != 0 {
		t.Errorf("not told: %v, %d starts, said %q", err, h.starts, out)
	}
	if !host.Absent(filepath.Join(s.Layout.Root, host.Dir)) {
		t.Error("a pod that waits has written to its host")
	}
	h.work = func(int) { report(t, s, success) }
	time.AfterFunc(2*waitInterval, func() {
		if err := s.Ask(); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		if result, err := s.Run(context.Background()); err != nil || result.Message != "fine" || h.starts != 1 {
			t.Errorf("told: %+v, %v, %d starts", result, err, h.starts)
		}
	}
	if err := s.Ask(); err != nil {
		t.Error("told once more", err)
	}
}

// TestAskRefuses what the pod would refuse: what is asked for while another run is open would be begun when that one is over.
func TestAskRefuses(t *testing.T) {
	s, _ := newSupervisor(t, &hostUnit{})
	openPhase(t, s.Layout.RunDir("r0"), "r0", protocol.PhaseCutover)
	if err := s.Layout.SetCurrent("r0"); err != nil {
		t.Fatal(err)
	}
	if err := s.Ask(); err == nil || !strings.Contains(err.Error(), "run r0 of this node is not over") {
		t.Error(err)
	}
	if _, asked, err := s.Layout.Requests().Spec(s.Spec.Run, s.Spec.Phase); err != nil || asked {
		t.Error("it was asked for", err)
	}
}

// TestUnusableJournal: whoever's it is, the journal is left alone and the Job ends with what a person can do.
func TestUnusableJournal(t *testing.T) {
	for _, phase := range []protocol.Phase{protocol.PhasePrepare, protocol.PhaseCutover, protocol.PhaseRollback} {
		for _, run := range []string{"r0", "r1"} {
			if phase == protocol.PhaseRollback && run == "r0" {
				continue
			}
			s, _ := newSupervisor(t, &hostUnit{})
			s.Spec.Phase = phase
			if err := os.MkdirAll(s.Layout.RunDir(run), 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(s.Layout.RunDir(run), journal.FileName)
			if err := os.WriteFile(path, []byte("?\n?\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := s.Layout.SetCurrent(run); err != nil {
				t.Fatal(err)
			}
			result, err := s.Run(context.Background())
			if err != nil || result.Outcome != protocol.OutcomeRefused || !strings.Contains(result.Message, "line 1: damaged") ||
				!strings.Contains(result.Hint, "move the directory away") {
				t.Errorf("%s, journal of %s: %+v %v", phase, run, result, err)
			}
			if now, _ := os.ReadFile(path); string(now) != "?\n?\n" {
				t.Errorf("the journal was changed to %q", now)
			}
		}
	}
}

// TestUnusableJournalInTheMiddle: once a cutover has begun, nobody may say that it was refused and the node is as it was.
func TestUnusableJournalInTheMiddle(t *testing.T) {
	for _, test := range []struct {
		phase, began protocol.Phase
		want         protocol.Outcome
	}{
		{protocol.PhasePrepare, protocol.PhasePrepare, protocol.OutcomeRefused},
		{protocol.PhaseCutover, protocol.PhasePrepare, protocol.OutcomeRefused},
		{protocol.PhaseCutover, protocol.PhaseCutover, protocol.OutcomeBroken},
		{protocol.PhaseRollback, protocol.PhaseCutover, protocol.OutcomeRefused},
		{protocol.PhaseRollback, protocol.PhaseRollback, protocol.OutcomeBroken},
	} {
		s, _ := newSupervisor(t, &hostUnit{})
		s.Spec.Phase = test.phase
		dir := s.Layout.RunDir(s.Spec.Run)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		event := protocol.Event{Version: protocol.Version, Seq: 1, Time: time.Now(), Run: s.Spec.Run, Phase: test.began, Step: &protocol.Step{ID: "kubelet-stop", State: protocol.StepStarted}}
		line, err := event.Encode()
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{journal.FileName: []byte("?\n?\n"), journal.EventsName: line} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Layout.SetCurrent(s.Spec.Run); err != nil {
			t.Fatal(err)
		}
		result, err := s.Run(context.Background())
		if err != nil || result.Outcome != test.want || !strings.Contains(result.Message, "line 1: damaged") {
			t.Errorf("%s in a run whose %s has begun: %+v %v", test.phase, test.began, result, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	t.Run("no systemd", func(t *testing.T) {
		s, out := newSupervisor(t, &hostUnit{})
		if err := os.RemoveAll(filepath.Join(s.Layout.Root, "run")); err != nil {
			t.Fatal(err)
		}
		result, err := s.Run(context.Background())
		if err != nil || result.Outcome != protocol.OutcomeRefused || !strings.Contains(result.Message, "systemd") {
			t.Error(result, err)
		}
		if got := events(t, out); len(got) != 1 || got[0].Seq != 1 || got[0].Result == nil {
			t.Errorf("%+v", got)
		}
		if !host.Absent(filepath.Join(s.Layout.Root, "var")) {
			t.Error("something was written")
		}
	})
	t.Run("unit cannot be started", func(t *testing.T) {
		s, out := newSupervisor(t, &hostUnit{fail: &host.CommandError{Command: "systemctl start", Err: errors.New("exit status 1")}})
		result, err := s.Run(context.Background())
		if err != nil || result.Outcome != protocol.OutcomeRefused || !strings.Contains(result.Detail, "permission denied") {
			t.Error(result, err)
		}
		if got := events(t, out); len(got) != 1 {
			t.Errorf("%+v", got)
		}
	})
	t.Run("another run is open", func(t *testing.T) {
		s, _ := newSupervisor(t, &hostUnit{})
		openPhase(t, s.Layout.RunDir("r0"), "r0", protocol.PhaseCutover)
		if err := s.Layout.SetCurrent("r0"); err != nil {
			t.Fatal(err)
		}
		result, err := s.Run(context.Background())
		if err != nil || result.Outcome != protocol.OutcomeRefused || !strings.Contains(result.Message, "r0") {
			t.Error(result, err)
		}
		if !strings.HasSuffix(result.Hint, " /var/lib/kubectl-runtime/bin/runtime-agent status") {
			t.Errorf("hint %q", result.Hint)
		}
		elsewhere := "/opt/kubectl-runtime/runtime-agent" // as on a host whose /var is mounted noexec
		if err := host.Replace(filepath.Join(s.Layout.Root, elsewhere), nil, 0o755); err != nil {
			t.Fatal(err)
		}
		if result, err := s.Run(context.Background()); err != nil || !strings.HasSuffix(result.Hint, " "+elsewhere+" status") {
			t.Errorf("hint %q, %v", result.Hint, err)
		}
		if current, _ := s.Layout.Current(); current != "r0" {
			t.Errorf("the current run is %s", current)
		}
	})
}

// TestKilled: the pod's end is an error, so that the Job starts it again.
func TestKilled(t *testing.T) {
	h := &hostUnit{active: true}
	s, _ := newSupervisor(t, h)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// TestRollbackIsAskedForAgain: a rollback that failed has a result, which only another attempt looks past.
func TestRollbackIsAskedForAgain(t *testing.T) {
	h := &hostUnit{}
	s, out := newSupervisor(t, h)
	s.Spec.Phase, s.Spec.Attempt = protocol.PhaseRollback, "a1"
	tell := func(outcome protocol.Outcome) {
		events, err := journal.OpenEvents(s.Layout.RunDir("r1"), "r1", time.Now)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = events.Close() }()
		for _, event := range []protocol.Event{
			{Phase: protocol.PhaseRollback, Log: &protocol.Log{Level: "info", Message: string(outcome)}},
			{Phase: protocol.PhaseRollback, Result: &protocol.Result{Outcome: outcome}},
		} {
			if err := events.Append(event); err != nil {
				t.Fatal(err)
			}
		}
	}
	again := filepath.Join(s.Layout.RunDir("r1"), "rollback-again")
	h.work = func(int) { tell(protocol.OutcomeBroken) }
	run := func(want protocol.Outcome, starts, lines int) {
		t.Helper()
		out.Reset()
		result, err := s.Run(context.Background())
		if err != nil || result.Outcome != want || h.starts != starts {
			t.Fatalf("%+v, %v, %d starts", result, err, h.starts)
		}
		if got := events(t, out); len(got) != lines {
			t.Errorf("%+v", got)
		}
	}

	run(protocol.OutcomeRefused, 0, 1) // without a journal there is nothing to undo, and the host stays as it is
	if _, ok, err := s.Layout.Requests().Spec("r1", protocol.PhaseRollback); err != nil || ok {
		t.Error("it was asked for", err)
	}

	openPhase(t, s.Layout.RunDir("r1"), "r1", protocol.PhasePrepare)
	run(protocol.OutcomeBroken, 1, 2)
	run(protocol.OutcomeBroken, 1, 2) // the same Job's next pod
	if !host.Absent(again) {
		t.Error("a rollback was asked for twice by one attempt")
	}
	s.Spec.Attempt = "a2"
	h.work = func(int) {
		if host.Absent(again) {
			t.Error("the unit was started and not asked for another rollback")
		}
		tell(protocol.OutcomeSucceeded)
	}
	run(protocol.OutcomeSucceeded, 2, 2)
	run(protocol.OutcomeSucceeded, 2, 2)
	s.Spec.Attempt = "a3"
	run(protocol.OutcomeSucceeded, 2, 4) // what succeeded is not repeated
}

// TestRefusedRequestLeavesNoTrace: a rollback that is refused because of another run is not done later, when the host next has something to do.
func TestRefusedRequestLeavesNoTrace(t *testing.T) {
	s, _ := newSupervisor(t, &hostUnit{})
	s.Spec.Phase, s.Spec.Attempt = protocol.PhaseRollback, "a2"
	dir := s.Layout.RunDir("r1")
	openPhase(t, dir, "r1", protocol.PhasePrepare)
	j, err := journal.Open(dir, journal.Identity{Run: "r1", Node: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	closed := journal.Record{Kind: journal.KindClose, Phase: protocol.PhasePrepare, Result: success.Result}
	if err := errors.Join(j.Append(closed), j.Close()); err != nil {
		t.Fatal(err)
	}
	report(t, s, protocol.Event{Phase: protocol.PhaseRollback, Result: &protocol.Result{Outcome: protocol.OutcomeRefused}})
	openPhase(t, s.Layout.RunDir("r2"), "r2", protocol.PhaseCutover)
	if err := s.Layout.SetCurrent("r2"); err != nil {
		t.Fatal(err)
	}
	result, err := s.Run(context.Background())
	if err != nil || result.Outcome != protocol.OutcomeRefused || !strings.Contains(result.Message, "run r2 of this node is not over") {
		t.Errorf("%+v %v", result, err)
	}
	if !host.Absent(filepath.Join(dir, "rollback-again")) {
		t.Error("the rollback is still asked for")
	}
}
