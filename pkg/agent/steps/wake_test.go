package steps

import (
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// TestWake: a containerd that hangs is killed and started before Docker is, which runs on it; one that answers is not touched.
func TestWake(t *testing.T) {
	for name, test := range map[string]struct {
		hangs []string
		verbs string
	}{
		"answers": {nil, ""},
		"hangs":   {[]string{"*"}, "kill restart"},
	} {
		t.Run(name, func(t *testing.T) {
			runtime := nodetest.StartCRI(t, "app")
			runtime.Set(test.hangs...)
			systemd := &hooked{Units: nodetest.NewUnits(t, node.ContainerdUnit), on: func(string) error { return nil }}
			h := &node.Host{Systemd: host.Systemd{Run: systemd, Dir: t.TempDir()}}
			if err := wakeIfHung(t.Context(), h, runtime.Endpoint, 300*time.Millisecond, node.Silent{}); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(systemd.verbs, " "); got != test.verbs {
				t.Errorf("containerd.service: %q, want %q", got, test.verbs)
			}
		})
	}
}
