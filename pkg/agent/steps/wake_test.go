package steps

import (
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
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
			runtime := startFakeCRI(t, "app")
			runtime.set(test.hangs...)
			systemd := &hooked{units: newUnits(t, containerdUnit), on: func(string) error { return nil }}
			h := &Host{Systemd: host.Systemd{Run: systemd, Dir: t.TempDir()}}
			if err := wakeIfHung(t.Context(), h, runtime.endpoint, 300*time.Millisecond, quiet{}); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(systemd.verbs, " "); got != test.verbs {
				t.Errorf("containerd.service: %q, want %q", got, test.verbs)
			}
		})
	}
}
