package steps

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestSysctlsOutliveAReboot: a node that loses its power between docker-stop and node-sysctls boots without Docker, and with the kernel's defaults.
func TestSysctlsOutliveAReboot(t *testing.T) {
	nodetest.InNetworkNamespace(t)
	const forward = "net.ipv4.ip_forward"
	if err := host.SetSysctl(forward, "1"); err != nil { // as dockerd does
		t.Fatal(err)
	}
	settings := facts.ReadKernel(facts.ReadSysctl)
	raw, err := json.Marshal(facts.Found{Kernel: &settings})
	if err != nil {
		t.Fatal(err)
	}
	var found facts.Found
	if err := json.Unmarshal(raw, &found); err != nil {
		t.Fatal(err)
	}
	if err := host.SetSysctl(forward, "0"); err != nil { // the reboot
		t.Fatal(err)
	}

	if got := keptSysctls(t, found); !strings.Contains(got, "\n"+forward+" = 1\n") {
		t.Errorf("for the next boot: %q", got)
	}
	h := nodetest.HostWith(t, found, protocol.Spec{})
	setKernel(t.Context(), h, *found.Kernel, node.Silent{})
	if value, _ := facts.ReadSysctl(forward); value != "1" {
		t.Errorf("%s is %s until the next boot", forward, value)
	}

	if err := host.SetSysctl(forward, "0"); err != nil {
		t.Fatal(err)
	}
	found.Kernel = nil
	if got := keptSysctls(t, found); strings.Contains(got, forward) {
		t.Errorf("by the journal of an older agent: %q", got)
	}
}

// keptSysctls is what node-sysctls would write for the next boot.
func keptSysctls(t *testing.T, found facts.Found) string {
	t.Helper()
	for _, step := range List(nodetest.HostWith(t, found, protocol.Spec{}))[protocol.PhaseCutover] {
		if step.ID() != "node-sysctls" {
			continue
		}
		files, err := step.(interface {
			PlanFiles(ctx context.Context) ([]desired.File, error)
		}).PlanFiles(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if file.Path == desired.SysctlFile {
				return string(file.New)
			}
		}
	}
	return ""
}
