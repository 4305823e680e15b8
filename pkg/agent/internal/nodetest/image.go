package nodetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// ImportTestImage has containerd take the images test/pause:1 and test/agent:1.
func ImportTestImage(t *testing.T, address string) {
	t.Helper()
	c, err := containerd.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	docker, program := &agenttest.Docker{}, agenttest.Program(t)
	docker.Add(t, agenttest.Legacy, []string{"test/pause:1", "test/agent:1"}, nil, map[string][]byte{"program": program, "runtime-agent": program})
	if _, err := images.Import(t.Context(), docker, c, []string{"test/pause:1"}, nil, images.WithSnapshotter("native"), images.WithRun("run")); err != nil {
		t.Fatal(err)
	}
	client, err := cri.Dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	err = host.Within(t.Context(), 20*time.Second, func(ctx context.Context) error {
		return host.Poll(ctx, 50*time.Millisecond, func(ctx context.Context) error {
			there, err := client.HasImage(ctx, "test/agent:1")
			if err == nil && !there {
				err = errors.New("no image")
			}
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// StartOn runs a containerd with a network, and returns its address.
func StartOn(t *testing.T, release agenttest.Release, network agenttest.Network) string {
	t.Helper()
	config, err := containerd.Render([]byte(agenttest.Isolated), containerd.Settings{
		CgroupDriver: "cgroupfs", SandboxImage: "test/pause:1", Snapshotter: "native", CNIBinDirs: network.BinDir, CNIConfDir: network.ConfDir,
		RestrictOOMScoreAdj: true, // test machines may lack CAP_SYS_RESOURCE
	})
	if err != nil {
		t.Fatal(err)
	}
	daemon := agenttest.Start(t, release, string(config), agenttest.Runc(t))
	ImportTestImage(t, daemon.Address)
	return daemon.Address
}
