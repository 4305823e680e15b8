package steps

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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

func TestRemoveDockerLogLinks(t *testing.T) {
	dir := t.TempDir()
	logs := filepath.Join(dir, "ns_pod_uid", "app")
	if err := os.MkdirAll(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/var/lib/docker/containers/x/x-json.log", filepath.Join(logs, "0.log")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(logs, "1.log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeDockerLogLinks(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(logs)
	if err != nil || len(left) != 1 || left[0].Name() != "1.log" {
		t.Errorf("%v %v", left, err)
	}
}
