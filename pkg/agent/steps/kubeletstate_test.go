package steps

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// warnings is a report that keeps warnings.
type warnings struct {
	node.Silent
	texts []string
}

func (w *warnings) Warn(text string) { w.texts = append(w.texts, text) }

// TestDropEmptyState: only empty files of the kubelet's state go, and each is reported.
func TestDropEmptyState(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"cpu_manager_state": `{"policyName":"none"}`, "dra_manager_state": "", "memory_manager_state": "", "config.yaml": "", "pki_state": " ",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/nowhere", filepath.Join(dir, "link_state")); err != nil {
		t.Fatal(err)
	}
	var report warnings
	found := facts.Found{Facts: protocol.Facts{KubeletVersion: "v1.37.2"}, KubeletArgs: []string{"/usr/bin/kubelet", "--root-dir=" + dir}}
	if err := dropEmptyState(found, &report); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	if want := []string{"config.yaml", "cpu_manager_state", "link_state", "pki_state"}; !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
	if len(report.texts) != 2 || !strings.Contains(report.texts[0], filepath.Join(dir, "dra_manager_state")) {
		t.Errorf("warned of %q", report.texts)
	}
}
