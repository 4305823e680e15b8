package steps

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestKubeletStopRefusesBrokenHold: such a drop-in is found once more before the kubelet is stopped.
func TestKubeletStopRefusesBrokenHold(t *testing.T) {
	breaker := filepath.Join(t.TempDir(), "zzz-admin.conf")
	if err := os.WriteFile(breaker, []byte("[Unit]\nConditionPathExists=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := nodetest.HostWith(t, facts.Found{}, protocol.Spec{KeepDocker: true})
	for _, breaks := range []bool{false, true} {
		h.Systemd = host.Systemd{Run: nodetest.Says{"kubelet.service": map[bool]string{true: "DropInPaths=" + breaker + "\n"}[breaks]}}
		if _, err := kubeletStop(h).Record(t.Context(), node.Silent{}); (err != nil) != breaks {
			t.Errorf("breaks %t: %v", breaks, err)
		}
	}
}
