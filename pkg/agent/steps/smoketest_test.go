package steps

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestSmokeTestWithoutNetwork: in the cutover the CNI's own pods are down, and with them what its plugins need, or even its configuration. The
// rehearsal does need the network.
func TestSmokeTestWithoutNetwork(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			network := agenttest.NewNetwork(t, "10.253.92.0/24")
			address := nodetest.StartOn(t, release, network)
			found := facts.Found{ContainerdAddress: address, DockerSocket: "unix://" + nodetest.StartDocker(t).Socket}
			found.Facts.NewEndpoint, found.Facts.SandboxImage, found.Facts.CgroupDriver = "unix://"+address, "test/pause:1", "cgroupfs"
			h := nodetest.HostWith(t, found, protocol.Spec{Image: "test/agent:1", Pod: protocol.PodRef{Namespace: "kubectl-runtime", Name: "job", UID: "uid"}})
			h.Systemd = nodetest.NewUnits(t, node.ContainerdUnit).Systemd
			run := func(phase protocol.Phase, id string) error {
				for _, step := range List(h)[phase] {
					if step.ID() == id {
						return step.Apply(t.Context(), json.RawMessage("{}"), node.Silent{})
					}
				}
				t.Fatalf("no step %s", id)
				return nil
			}
			if err := run(protocol.PhasePrepare, "rehearsal"); err == nil || !strings.Contains(err.Error(), "RunPodSandbox: ") || !strings.Contains(err.Error(), "is it running?") {
				t.Errorf("rehearsal without the CNI's agent: %v", err)
			}
			if err := run(protocol.PhaseCutover, "smoke-test"); err != nil {
				t.Errorf("smoke test without the CNI's agent: %v", err)
			}
			file := filepath.Join(network.ConfDir, "10-test.conflist")
			if err := os.Rename(file, file+".away"); err != nil {
				t.Fatal(err)
			}
			if err := run(protocol.PhaseCutover, "smoke-test"); err != nil {
				t.Errorf("smoke test without a CNI configuration: %v", err)
			}
			if err := os.Rename(file+".away", file); err != nil {
				t.Fatal(err)
			}
			network.StartAgent(t)
			if err := run(protocol.PhasePrepare, "rehearsal"); err != nil { // it removes what the first one could not
				t.Errorf("rehearsal with the CNI's agent: %v", err)
			}
		})
	}
}
