package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/unit"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

type units string

func (u units) Run(context.Context, string, ...string) (string, error) {
	return "LoadState=loaded\nActiveState=" + string(u) + "\n", nil
}

func record(kind journal.Kind, phase protocol.Phase, step string) journal.Record {
	r := journal.Record{Kind: kind, Time: time.Unix(1e9, 0).UTC(), Phase: phase, Step: step}
	switch kind {
	case journal.KindOpen:
		r.Deadline = r.Time.Add(time.Hour)
	case journal.KindUndo, journal.KindRevertFailed:
		r.Failure = &journal.Failure{Step: step, Message: "no luck"}
	default:
	}
	return r
}

func closed(phase protocol.Phase, outcome protocol.Outcome) journal.Record {
	r := record(journal.KindClose, phase, "")
	r.Result = &protocol.Result{Outcome: outcome, Message: "so it is"}
	return r
}

func TestStatus(t *testing.T) {
	const agentPath = "/opt/kubectl-runtime/runtime-agent"
	const prepare, cutover = protocol.PhasePrepare, protocol.PhaseCutover
	prepared := []journal.Record{
		record(journal.KindOpen, prepare, ""), record(journal.KindIntent, prepare, "inspect"), record(journal.KindDone, prepare, "inspect"),
		closed(prepare, protocol.OutcomeSucceeded),
	}
	open := append(prepared[:4:4], record(journal.KindOpen, cutover, ""), record(journal.KindIntent, cutover, "kubelet-stop"))
	for _, test := range []struct {
		name    string
		records []journal.Record
		damage  bool
		unit    units
		held    bool
		want    []string
	}{
		{"no run", nil, false, "inactive", false, []string{"Run:          <none>", "Next:         kubectl runtime switch NODE"}},
		{"prepared", prepared, false, "inactive", false, []string{"Ended:        prepare succeeded at 2001-09-09T01:46:40Z: so it is", "kubectl runtime switch node-1 resumes the run", "inspect  prepare  done   2001"}},
		{"open and at work", open, false, "active", true, []string{"Open:         cutover goes forward until 2001-09-09T02:46:40Z", "journalctl -fu", "active, held", "kubelet-stop  cutover  begun"}},
		{"open and dead", open, false, "failed", true, []string{"Host unit:    not at work", "Next:         " + agentPath + " resume"}},
		{"undoing", append(open[:6:6], record(journal.KindUndo, cutover, "kubelet-stop")), false, "active", true, []string{"cutover is being undone", "Last error:   kubelet-stop: no luck"}},
		{
			"broken", append(open[:6:6], record(journal.KindRevertFailed, cutover, "kubelet-stop"), closed(cutover, protocol.OutcomeBroken)), false, "inactive", true,
			[]string{"cure the cause, then " + agentPath + " rollback", "revert-failed"},
		},
		{
			"switched", append(open[:6:6], record(journal.KindDone, cutover, "kubelet-stop"), closed(cutover, protocol.OutcomeSucceeded)), false, "inactive", false,
			[]string{"Next:         nothing is left to do; " + agentPath + " rollback goes back", "Runtime set:  unix:///x.sock"},
		},
		{
			"rollback refused",
			append(open[:6:6], record(journal.KindDone, cutover, "kubelet-stop"), closed(cutover, protocol.OutcomeSucceeded), closed(protocol.PhaseRollback, protocol.OutcomeRefused)),
			false, "inactive", false,
			[]string{"Ended: rollback refused", "cure the cause, then " + agentPath + " rollback"},
		},
		{"cloned", open, false, "failed", false, []string{"Node: node-1", "it belongs to node node-1 (machine m), not to this host (machine other)", "move the directory away"}},
		{"damaged", open, true, "failed", true, []string{"Journal:", "line 1: damaged", "move the directory away"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			layout := unit.Layout{Root: t.TempDir()}
			if test.records != nil {
				writeRun(t, layout, test.records, test.damage)
			}
			if test.held {
				if err := host.Replace(layout.Hold(), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			machine := "m"
			if test.name == "cloned" {
				machine = "other"
			}
			s, err := readStatus(context.Background(), layout, host.Systemd{Run: test.unit}, agentPath, machine, func() (string, error) { return "unix:///x.sock", nil })
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := s.print(&out, ""); err != nil {
				t.Fatal(err)
			}
			for _, want := range test.want {
				if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), strings.Join(strings.Fields(want), " ")) {
					t.Errorf("no %q in:\n%s", want, out.String())
				}
			}
			out.Reset()
			var back status
			if err := s.print(&out, "json"); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(out.Bytes(), &back); err != nil || back.Next != s.Next || len(back.Steps) != len(s.Steps) || back.KubeletHeld != test.held {
				t.Errorf("%+v %v", back, err)
			}
		})
	}
}

func writeRun(t *testing.T, layout unit.Layout, records []journal.Record, damage bool) {
	t.Helper()
	dir := layout.RunDir("r1")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(dir, journal.Identity{Run: "r1", Node: "node-1", Machine: "m"})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := j.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(j.Close(), layout.SetCurrent("r1")); err != nil {
		t.Fatal(err)
	}
	if damage {
		if err := os.WriteFile(filepath.Join(dir, journal.FileName), []byte("?\n?\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRollbackNeedsAJournal: nothing is asked of the host unit that it could not do.
func TestRollbackNeedsAJournal(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		layout := unit.Layout{Root: t.TempDir()}
		writeRun(t, layout, []journal.Record{record(journal.KindOpen, protocol.PhasePrepare, "")}, damaged)
		spec := protocol.Spec{Version: protocol.Version, Run: "r1", Node: "node-1", Phase: protocol.PhasePrepare, CutoverSeconds: 60}
		if err := layout.Requests().Ask(spec); err != nil {
			t.Fatal(err)
		}
		if err := askRollback(layout, "other"); !errors.Is(err, journal.ErrUnusable) {
			t.Errorf("on a clone: %v", err)
		}
		err := askRollback(layout, "m")
		run, findErr := layout.Current()
		if findErr != nil {
			t.Fatal(findErr)
		}
		_, asked, specErr := layout.Requests().Spec(run, protocol.PhaseRollback)
		if errors.Is(err, journal.ErrUnusable) != damaged || asked == damaged || specErr != nil {
			t.Errorf("damaged %t: %v; asked for: %t %v", damaged, err, asked, specErr)
		}
	}
}

// TestResumeNeedsAJournal: a unit that can only fail is not started, but for a kubelet that it gives back.
func TestResumeNeedsAJournal(t *testing.T) {
	for _, test := range []struct{ damaged, held, started bool }{
		{damaged: false, started: true},
		{damaged: false, held: true, started: true},
		{damaged: true, started: false},
		{damaged: true, held: true, started: true},
	} {
		layout := unit.Layout{Root: t.TempDir()}
		writeRun(t, layout, []journal.Record{record(journal.KindOpen, protocol.PhasePrepare, "")}, test.damaged)
		if test.held {
			if err := host.Replace(layout.Hold(), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		started := false
		err := resume(layout, "m", func() error { started = true; return nil })
		if errors.Is(err, journal.ErrUnusable) != test.damaged || started != test.started {
			t.Errorf("%+v: started %t, %v", test, started, err)
		}
	}
}
