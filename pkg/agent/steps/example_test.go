package steps

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var motdFile = "/etc/motd.d/container-runtime"

// The step of CONTRIBUTING.md's example.

// motdNote leaves a note about the runtime for people who log in to the node.
func motdNote(h *node.Host) engine.Step {
	files := func(context.Context) ([]desired.File, error) {
		return []desired.File{{Path: motdFile, New: []byte("This node runs containerd: use crictl, not docker.\n")}}, nil
	}
	return step[[]host.Change]{
		id: "motd-note", title: "Leave a note for people who log in",
		record: func(ctx context.Context, _ engine.Report) ([]host.Change, error) {
			list, err := files(ctx)
			if err != nil {
				return nil, err
			}
			return changesOf(h, list)
		},
		files: files,
		apply: func(_ context.Context, changes []host.Change, _ engine.Report) error {
			for _, change := range changes {
				if err := backups(h).Apply(change); err != nil {
					return err
				}
			}
			return nil
		},
		changed:    pathsOf,
		revertible: func(_ context.Context, changes []host.Change) error { return undoable(h, changes) },
		revert: func(_ context.Context, changes []host.Change, report engine.Report) error {
			return undoFiles(h, changes, report)
		},
	}
}

// TestExampleStep: the step of CONTRIBUTING.md is this one, and it works: recorded, applied twice, undone twice.
func TestExampleStep(t *testing.T) {
	nodetest.ExampleIsInGuide(t, "step")

	motdFile = filepath.Join(t.TempDir(), "motd.d", "container-runtime")
	s := motdNote(&node.Host{RunDir: t.TempDir(), Spec: protocol.Spec{}})
	memo, err := s.Record(t.Context(), node.Silent{})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(memo)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // as after a power cut
		if err := s.Apply(t.Context(), raw, node.Silent{}); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(motdFile); err != nil || !strings.Contains(string(got), "crictl") {
		t.Errorf("the note is %q, %v", got, err)
	}
	for range 2 {
		if err := s.Revert(t.Context(), raw, node.Silent{}); err != nil {
			t.Fatal(err)
		}
	}
	if !host.Absent(filepath.Dir(motdFile)) {
		t.Errorf("%s is left", filepath.Dir(motdFile))
	}
}
