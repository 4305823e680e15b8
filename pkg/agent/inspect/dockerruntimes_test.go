package inspect

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
)

func TestRuntimesProgramsAreFound(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"containerd-shim-lab-v1", "wrapper"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "containerd-shim-data-v1"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		json            string
		refused, warned string
	}{
		"none":                        {json: `{"default-runtime": "runc"}`},
		"shim beside containerd":      {json: `{"default-runtime": "io.containerd.lab.v1"}`},
		"no shim":                     {json: "{\n \"default-runtime\": \"io.containerd.nowhere.v1\"}", refused: "daemon.json:2:2: Docker's default runtime io.containerd.nowhere.v1 needs the program containerd-shim-nowhere-v1"},
		"no program":                  {json: `{"default-runtime": "io.containerd.data.v1"}`, refused: "containerd-shim-data-v1"},
		"shim of an entry":            {json: `{"default-runtime": "gvisor", "runtimes": {"gvisor": {"runtimeType": "io.containerd.nowhere.v1"}}}`, refused: "containerd-shim-nowhere-v1"},
		"not the default":             {json: `{"runtimes": {"gvisor": {"runtimeType": "io.containerd.nowhere.v1"}}}`, warned: "containerd-shim-nowhere-v1"},
		"type that is a path":         {json: `{"default-runtime": "x", "runtimes": {"x": {"runtimeType": "` + dir + `/containerd-shim-lab-v1"}}}`},
		"type that is a missing path": {json: `{"default-runtime": "x", "runtimes": {"x": {"runtimeType": "/nowhere/shim"}}}`, refused: "/nowhere/shim"},
		"type that is no type":        {json: `{"runtimes": {"x": {"runtimeType": "runsc"}}}`, refused: "names no shim"},
		"path":                        {json: `{"default-runtime": "x", "runtimes": {"x": {"path": "` + dir + `/wrapper", "runtimeArgs": ["--a"]}}}`},
		"missing path":                {json: `{"default-runtime": "x", "runtimes": {"x": {"path": "/nowhere/wrapper"}}}`, refused: "/nowhere/wrapper"},
		"name in PATH":                {json: `{"default-runtime": "x", "runtimes": {"x": {"path": "sh"}}}`},
		"name beside containerd":      {json: `{"default-runtime": "x", "runtimes": {"x": {"path": "wrapper"}}}`, refused: "wrapper"},
	} {
		t.Run(name, func(t *testing.T) {
			docker, _, err := translate.Docker(translate.Input{File: "daemon.json", Data: []byte(c.json)})
			if err != nil {
				t.Fatal(err)
			}
			i := &inspection{h: &node.Host{Systemd: host.Systemd{Run: nodetest.Answers("MainPID=0\n")}}, Found: facts.Found{Docker: docker, ContainerdBinary: filepath.Join(dir, "containerd")}}
			err = checkRuntimes(t.Context(), i)
			var refused *node.Refusal
			if (err != nil) != (c.refused != "") || err != nil && (!errors.As(err, &refused) || !strings.Contains(err.Error(), c.refused)) {
				t.Errorf("got %v, want %q", err, c.refused)
			}
			if warned := strings.Join(i.Facts.Warnings, "\n"); (warned != "") != (c.warned != "") || !strings.Contains(warned, c.warned) {
				t.Errorf("warned of %q, want %q", warned, c.warned)
			}
		})
	}
}
