package steps

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestSmokeTestWithoutNetwork: in the cutover the CNI's own pods are down, and with them what its plugins need, or even its configuration. The
// rehearsal does need the network.
func TestSmokeTestWithoutNetwork(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			network := agenttest.NewNetwork(t, "10.253.92.0/24")
			address := startOn(t, release, network)
			found := inventory{ContainerdAddress: address}
			found.Facts.NewEndpoint, found.Facts.SandboxImage, found.Facts.CgroupDriver = "unix://"+address, "test/pause:1", "cgroupfs"
			h := hostWith(t, found, protocol.Spec{Image: "test/agent:1", Pod: protocol.PodRef{Namespace: "kubectl-runtime", Name: "job", UID: "uid"}})
			h.Systemd = newUnits(t, containerdUnit).systemd
			run := func(phase protocol.Phase, id string) error {
				for _, step := range List(h)[phase] {
					if step.ID() == id {
						return step.Apply(t.Context(), json.RawMessage("{}"), quiet{})
					}
				}
				t.Fatalf("no step %s", id)
				return nil
			}
			if err := run(protocol.PhasePrepare, rehearsalID); err == nil || !strings.Contains(err.Error(), "RunPodSandbox: ") || !strings.Contains(err.Error(), "is it running?") {
				t.Errorf("rehearsal without the CNI's agent: %v", err)
			}
			if err := run(protocol.PhaseCutover, smokeTestID); err != nil {
				t.Errorf("smoke test without the CNI's agent: %v", err)
			}
			if err := os.Remove(filepath.Join(network.ConfDir, "10-test.conflist")); err != nil {
				t.Fatal(err)
			}
			if err := run(protocol.PhaseCutover, smokeTestID); err != nil {
				t.Errorf("smoke test without a CNI configuration: %v", err)
			}
		})
	}
}

// startOn starts a containerd on that network, with the test images, and returns its address.
func startOn(t *testing.T, release agenttest.Release, network agenttest.Network) string {
	t.Helper()
	config, err := containerd.Render([]byte(agenttest.Isolated), containerd.Settings{
		CgroupDriver: "cgroupfs", SandboxImage: "test/pause:1", Snapshotter: "native", CNIBinDirs: network.BinDir, CNIConfDir: network.ConfDir,
		RestrictOOMScoreAdj: true, // test machines may lack CAP_SYS_RESOURCE
	})
	if err != nil {
		t.Fatal(err)
	}
	daemon := agenttest.Start(t, release, string(config), agenttest.Runc(t))
	importTestImage(t, daemon.Address)
	return daemon.Address
}
