package journal

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestDamagedEvent: a line that a disk has spoiled keeps neither the agent from working nor the numbers from going on.
func TestDamagedEvent(t *testing.T) {
	dir := t.TempDir()
	open := func() *Events {
		e, err := OpenEvents(dir, "run", time.Now)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := open()
	for range 2 {
		if err := e.Append(protocol.Event{Phase: protocol.PhasePrepare, Log: &protocol.Log{Message: "m"}}); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "events*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	data[0] = 0
	if err := os.WriteFile(files[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	if e = open(); e.seq != 2 {
		t.Errorf("goes on after event %d, want 2", e.seq)
	}
}
