package unit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// interrupted leaves a prepare of r1 open.
func (f *fixture) interrupted(t *testing.T) {
	t.Helper()
	f.ask(t, "r1", protocol.PhasePrepare)
	*f.failures[protocol.PhasePrepare] = errors.New("killed")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := f.Run(ctx); !errors.Is(err, engine.ErrInterrupted) {
		t.Fatal(err)
	}
	*f.failures[protocol.PhasePrepare] = nil
}

// TestBadInput: what cannot be resumed is left as it is, the node is rescued, and systemd does not try again.
func TestBadInput(t *testing.T) {
	for _, test := range []struct {
		name, file string
		spoil      func(string) string
		want       string
	}{
		{"newer journal", journal.FileName, func(s string) string { return strings.Replace(s, `"version":1`, `"version":2`, 1) }, "version 2 is newer"},
		{"damaged journal", journal.FileName, func(s string) string { return "?" + s[1:] + s }, "damaged"},
		{"cloned disk", journal.FileName, func(s string) string { return strings.Replace(s, `"machine":"m"`, `"machine":"other"`, 1) }, "cloned"},
		{"other node", journal.FileName, func(s string) string { return strings.Replace(s, "node-1", "node-2", 1) }, "node-2"},
		{"damaged spec", "prepare.json", func(string) string { return "{" }, "prepare.json"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t)
			f.interrupted(t)
			path := filepath.Join(f.Layout.RunDir("r1"), test.file)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			spoilt := test.spoil(string(data))
			if err := os.WriteFile(path, []byte(spoilt), 0o600); err != nil {
				t.Fatal(err)
			}
			rescued := 0
			f.Rescue = func(context.Context) ([]string, error) { rescued++; return nil, nil }
			began := len(f.began)
			err = f.Serve(context.Background())
			if permanent := (*PermanentError)(nil); !errors.As(err, &permanent) || !strings.Contains(err.Error(), test.want) || rescued != 1 {
				t.Errorf("rescued %d times: %v", rescued, err)
			}
			if now, _ := os.ReadFile(path); string(now) != spoilt || len(f.began) != began {
				t.Errorf("it was changed to %q, or worked on", now)
			}
			// Once it can be read again, what was open is undone: the node was given back meanwhile.
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := f.run(t, "r1"); got[protocol.PhasePrepare] != protocol.OutcomeRefused || len(f.marks(t)) > 0 {
				t.Errorf("after the cure: %v %v", got, f.marks(t))
			}
		})
	}
}

// TestServeTriesAgain: what may pass is tried again a few times, and without end while a phase is open.
func TestServeTriesAgain(t *testing.T) {
	for _, open := range []bool{false, true} {
		f := newFixture(t)
		if open {
			f.interrupted(t)
		} else {
			f.ask(t, "r1", protocol.PhasePrepare)
		}
		unlock, err := lock(filepath.Join(f.root, host.Dir, "lock"))
		if err != nil {
			t.Fatal(err)
		}
		tries := 0
		f.Log = func(string) {
			if tries++; tries == 20 {
				unlock()
			}
		}
		err = f.Serve(context.Background())
		if permanent := (*PermanentError)(nil); errors.As(err, &permanent) == open || open && tries != 20 || !open && tries != maxTries-1 {
			t.Errorf("open: %t: %d tries, %v", open, tries, err)
		}
		unlock()
	}
}

func TestUnitIsNotRestartedForGood(t *testing.T) {
	l := Layout{Root: t.TempDir()}
	systemd := host.Systemd{Run: &systemctl{}, Dir: filepath.Join(l.Root, "etc/systemd/system")}
	if err := Install(context.Background(), l, systemd, "/agent"); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(l.unitPath()); err != nil || !strings.Contains(string(text), "\nRestartPreventExitStatus=3\n") {
		t.Errorf("%s %v", text, err)
	}
}

// TestWithdraw: what never began does not begin at the next boot; what has begun is not withdrawn.
func TestWithdraw(t *testing.T) {
	ctx := context.Background()
	f := newFixture(t)
	f.ask(t, "r1", protocol.PhasePrepare)
	if err := Install(ctx, f.Layout, f.Systemd, "/agent"); err != nil {
		t.Fatal(err)
	}
	if err := Withdraw(ctx, f.Layout, f.Systemd, "r1", protocol.PhasePrepare); err != nil || !host.Absent(f.Layout.unitPath()) {
		t.Fatalf("%v, or the unit is left", err)
	}
	if _, ok, err := f.Layout.Requests().Spec("r1", protocol.PhasePrepare); ok || err != nil {
		t.Errorf("it is still asked for (%v)", err)
	}
	f.interrupted(t)
	if err := Withdraw(ctx, f.Layout, f.Systemd, "r1", protocol.PhasePrepare); err == nil || host.Absent(f.Layout.unitPath()) {
		t.Errorf("an open phase was withdrawn: %v", err)
	}
}
