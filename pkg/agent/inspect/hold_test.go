package inspect

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// TestHoldable: a drop-in that takes the hold away is found before the drain.
func TestHoldable(t *testing.T) {
	breaker := filepath.Join(t.TempDir(), "zzz-admin.conf")
	if err := os.WriteFile(breaker, []byte("[Unit]\nConditionPathExists=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, unit := range []string{"kubelet.service", "docker.service", "cri-docker.socket"} {
		h := &node.Host{Systemd: host.Systemd{Run: nodetest.Says{unit: "LoadState=loaded\nDropInPaths=" + breaker + "\n"}}}
		if err := checkHold(t.Context(), (&inspection{h: h})); err == nil || !strings.Contains(err.Error(), breaker+" resets the conditions of "+unit) {
			t.Errorf("%s: %v", unit, err)
		}
	}
}
