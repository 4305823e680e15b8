package unit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// smallHost makes the agent's directory a file system of its own, and returns its path.
func (f *fixture) smallHost(t *testing.T, size string) string {
	t.Helper()
	dir := filepath.Join(f.root, host.Dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("SKIPPED: a full disk cannot be tested without the right to mount one: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func fill(t *testing.T, dir string) {
	t.Helper()
	file, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = file.Write(make([]byte, 4096))
	}
	if !host.NoSpace(err) {
		t.Fatal(err)
	}
	_ = file.Close()
}

func spareLeft(t *testing.T, dir string) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, "runs/*/.kubectl-runtime-spare"))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// TestTooSmall: a host without room is refused, with the reason, and nothing is held back.
func TestTooSmall(t *testing.T) {
	f := newFixture(t)
	dir := f.smallHost(t, "16m")
	f.ask(t, "r1", protocol.PhasePrepare)
	if got := f.run(t, "r1"); got[protocol.PhasePrepare] != protocol.OutcomeRefused || len(f.marks(t)) > 0 || len(spareLeft(t, dir)) > 0 {
		t.Errorf("%v %v %v", got, f.marks(t), spareLeft(t, dir))
	}
}

// TestDiskFillsUp: the disk is full in the middle of a phase: what was held back suffices to end it.
func TestDiskFillsUp(t *testing.T) {
	for _, fails := range []bool{false, true} {
		f := newFixture(t)
		dir := f.smallHost(t, "64m")
		f.ask(t, "r1", protocol.PhasePrepare)
		f.run(t, "r1")
		f.ask(t, "r1", protocol.PhaseCutover)
		// Interrupted, so that the disk fills up while the phase is open.
		*f.failures[protocol.PhaseCutover] = errors.New("killed")
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := f.Run(ctx); !errors.Is(err, engine.ErrInterrupted) || len(spareLeft(t, dir)) != 1 {
			t.Fatalf("%v, held back: %v", err, spareLeft(t, dir))
		}
		if !fails {
			*f.failures[protocol.PhaseCutover] = nil
		}
		fill(t, dir)
		got := f.run(t, "r1")
		want, marks := protocol.OutcomeSucceeded, 2
		if fails {
			want, marks = protocol.OutcomeRolledBack, 0
		}
		if got[protocol.PhaseCutover] != want || len(f.marks(t)) != marks || len(spareLeft(t, dir)) > 0 {
			t.Errorf("fails: %t: %v %v %v", fails, got, f.marks(t), spareLeft(t, dir))
		}
	}
}

// TestDiskIsFull: a phase that cannot even be opened changes nothing and leaves nothing.
func TestDiskIsFull(t *testing.T) {
	f := newFixture(t)
	dir := f.smallHost(t, "64m")
	f.ask(t, "r1", protocol.PhasePrepare)
	fill(t, dir)
	err := f.Serve(context.Background())
	if permanent := (*PermanentError)(nil); !errors.As(err, &permanent) || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("%v", err)
	}
	if len(f.marks(t)) > 0 || len(spareLeft(t, dir)) > 0 {
		t.Errorf("%v %v", f.marks(t), spareLeft(t, dir))
	}
}
