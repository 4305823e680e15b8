package steps

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestList pins what journals hold: an ID that changes can no longer be undone by a newer agent.
func TestList(t *testing.T) {
	want := map[protocol.Phase]string{
		protocol.PhasePrepare: "inspect containerd-install containerd-config containerd-service images rehearsal",
		protocol.PhaseCutover: "kubelet-stop docker-pods docker-stop node-sysctls kubelet-config smoke-test kubelet-start node-ready",
		protocol.PhaseVerify:  "verify",
	}
	for phase, list := range List(&node.Host{}) {
		var ids []string
		for _, s := range list {
			ids = append(ids, s.ID())
			if s.Title() == "" {
				t.Errorf("%s has no title", s.ID())
			}
		}
		if got := strings.Join(ids, " "); got != want[phase] {
			t.Errorf("%s: %s", phase, got)
		}
	}
}

// helpers are the files that several steps use.
var helpers = []string{
	"steps.go", "step.go", "finish.go", "rescue.go", // the list, the type, and what is done after all steps
	"files.go",                      // records changes of files, and undoes them
	"cri.go",                        // waits for the new runtime
	"kubelet.go", "kubeletstate.go", // hold, stop, release and start the kubelet
	"nodestatus.go", "freshness.go", // wait for the node's status in the API
	"cadvisor.go",               // answers an old kubelet in Docker's place
	"smoke.go", "registries.go", // what the rehearsal and the smoke test run
}

// TestEveryStepHasItsFile: the file of a step is its ID without dashes, and every other file is one of a short list.
func TestEveryStepHasItsFile(t *testing.T) {
	known := slices.Clone(helpers)
	page, err := os.ReadFile("../../../docs/design/steps.md")
	if err != nil {
		t.Fatal(err)
	}
	for phase, list := range List(&node.Host{}) {
		for _, s := range list {
			if row := fmt.Sprintf("| %s | `%s` |", phase, s.ID()); !strings.Contains(string(page), row) {
				t.Errorf("step %s has no row %q in docs/design/steps.md", s.ID(), row)
			}
			name := strings.ReplaceAll(s.ID(), "-", "") + ".go"
			known = append(known, name)
			source, err := os.ReadFile(name)
			if err != nil {
				t.Errorf("step %s: %v", s.ID(), err)
			} else if !strings.Contains(string(source), ") engine.Step {") {
				t.Errorf("step %s is not defined in pkg/agent/steps/%s", s.ID(), name)
			}
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") && !slices.Contains(known, file) {
			t.Errorf("pkg/agent/steps/%s is no step's file", file)
		}
	}
}

// TestChangedFiles: a phase's result lists the files of the steps that were done and not undone.
func TestChangedFiles(t *testing.T) {
	h := nodetest.HostWith(t, facts.Found{}, protocol.Spec{})
	h.Systemd.Dir = t.TempDir()
	records := h.Records()
	did := func(id string, memo any) {
		raw, err := json.Marshal(memo)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, journal.Record{Kind: journal.KindIntent, Phase: protocol.PhaseCutover, Step: id, Memo: raw},
			journal.Record{Kind: journal.KindDone, Phase: protocol.PhaseCutover, Step: id})
	}
	did(kubeletConfigID, []host.Change{{Path: "/etc/a"}, {Path: "/etc/b"}})
	did(dockerStopID, []host.UnitState{{Name: "docker.service"}})
	did(containerdConfigID, []host.Change{{Path: "/etc/undone"}})
	records = append(records, journal.Record{Kind: journal.KindReverted, Phase: protocol.PhaseCutover, Step: containerdConfigID})
	h.Records = func() []journal.Record { return records }
	got := slices.DeleteFunc(changedFiles(h), func(path string) bool { return path == linkFile }) // this machine may have one
	if want := []string{h.Systemd.HoldPath("docker.service"), "/etc/a", "/etc/b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
