package steps

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
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
			address := startOn(t, release, network)
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

// TestStopPodsWithoutAgent: on the way back, CNI DEL fails where the network's agent does not run. Nothing of the pods stays behind, and
// containerd can remove them later.
func TestStopPodsWithoutAgent(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			network := agenttest.NewNetwork(t, "10.253.93.0/24")
			endAgent := network.StartAgent(t)
			address := startOn(t, release, network)
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			c, err := cri.Dial(ctx, address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			looked := false
			smoke := func(stage func(string)) error {
				return c.Smoke(ctx, cri.SmokeOptions{
					SandboxImage: "test/pause:1", Image: "test/agent:1", CgroupDriver: "cgroupfs", CgroupParent: hungCgroup, LeaseDir: network.Leases,
					Command: []string{"/program", "sleep"}, Exec: []string{"/program", "version"},
					Pod: cri.Pod{Namespace: "kubectl-runtime", Name: "job", UID: "uid"}, LogDir: filepath.Join(t.TempDir(), "logs"), Stage: stage,
				})
			}
			t.Cleanup(removeHungCgroups)
			_ = smoke(func(stage string) { // its pod is stopped half way
				if !strings.Contains(stage, "statistics") {
					return
				}
				looked = true
				endAgent()
				namespaces, err := c.NetworkNamespaces(ctx)
				if err != nil || len(namespaces) != 1 || len(network.Held()) != 1 {
					t.Errorf("namespaces %v, %v; leases %v", namespaces, err, network.Held())
				}
				p := newPodStopper(&node.Host{Systemd: nodetest.NewUnits(t, node.ContainerdUnit).Systemd}, facts.Found{ContainerdAddress: address})
				p.endpoint, p.leases = "unix://"+address, network.Leases
				heard := &warned{}
				if err := p.stop(ctx, heard); err != nil {
					t.Error(err)
				}
				if text := strings.Join(heard.warnings, "\n"); !strings.Contains(text, "taken down without CNI DEL") {
					t.Errorf("warnings: %s", text)
				}
				for _, path := range namespaces {
					if !host.Absent(path) {
						t.Errorf("%s is still there", path)
					}
				}
				if held := network.Held(); len(held) != 0 {
					t.Errorf("leases left: %v", held)
				}
				if shims, containers, err := p.pods.find(); err != nil || len(shims)+len(containers) != 0 {
					t.Errorf("%d shims and %d processes are left, %v", len(shims), len(containers), err)
				}
				network.StartAgent(t)
			})
			if !looked {
				t.Fatal("no pod ran")
			}
			if err := smoke(nil); err != nil {
				t.Errorf("with its agent back: %v", err)
			}
			if left, err := c.Sandboxes(ctx); err != nil || len(left) != 0 {
				t.Errorf("%v, %v", left, err)
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
