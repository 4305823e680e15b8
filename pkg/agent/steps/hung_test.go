package steps

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestHungContainerd stops the process of a real containerd while it runs a pod: CRI says nothing any more, nobody can restart it, and
// the pod's processes are ended all the same.
func TestHungContainerd(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			config, err := containerd.Render([]byte(agenttest.Isolated), containerd.Settings{
				CgroupDriver: "cgroupfs", SandboxImage: "test/pause:1", Snapshotter: "native", CNIBinDirs: t.TempDir(), CNIConfDir: t.TempDir(),
				RestrictOOMScoreAdj: true, // test machines may lack CAP_SYS_RESOURCE
			})
			if err != nil {
				t.Fatal(err)
			}
			daemon := agenttest.Start(t, release, string(config), agenttest.Runc(t))
			importTestImage(t, daemon.Address)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			c, err := cri.Dial(ctx, daemon.Address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			t.Cleanup(removeHungCgroups) // a container that is killed leaves its own
			looked := false
			_ = c.Smoke(ctx, cri.SmokeOptions{ // its pod is killed half way
				SandboxImage: "test/pause:1", Image: "test/agent:1", CgroupDriver: "cgroupfs", CgroupParent: hungCgroup, HostNetwork: true,
				Command: []string{"/program", "sleep"}, Exec: []string{"/program", "version"},
				Pod: cri.Pod{Namespace: "kubectl-runtime", Name: "job", UID: "uid"}, LogDir: filepath.Join(daemon.Dir, "logs"),
				Stage: func(stage string) {
					if !strings.Contains(stage, "statistics") {
						return
					}
					looked = true
					if err := daemon.Hang(); err != nil {
						t.Error(err)
					}
					stopHungPods(t, daemon.Address)
					if err := daemon.Resume(); err != nil {
						t.Error(err)
					}
					cancel()
				},
			})
			if !looked {
				t.Error("no pod ran")
			}
		})
	}
}

// TestUndoImagesOfHungContainerd: a containerd that hangs when the images are to be removed is restarted first.
func TestUndoImagesOfHungContainerd(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			config, err := containerd.Render([]byte(agenttest.Isolated), containerd.Settings{Snapshotter: "native"})
			if err != nil {
				t.Fatal(err)
			}
			daemon := agenttest.Start(t, release, string(config), "")
			importTestImage(t, daemon.Address)
			memo, err := json.Marshal(facts.Found{ContainerdAddress: daemon.Address, Facts: protocol.Facts{NewEndpoint: "unix://" + daemon.Address}})
			if err != nil {
				t.Fatal(err)
			}
			systemd := &hooked{Units: nodetest.NewUnits(t, node.ContainerdUnit), on: func(verb string) error {
				if verb == "restart" { // systemd sends SIGCONT after SIGTERM
					return daemon.Resume()
				}
				return nil
			}}
			h := &node.Host{Spec: protocol.Spec{Run: "run"}, Systemd: host.Systemd{Run: systemd, Dir: t.TempDir()}, Records: func() []journal.Record {
				return []journal.Record{{Kind: journal.KindIntent, Phase: protocol.PhasePrepare, Step: facts.InspectID, Memo: memo}}
			}}
			if err := daemon.Hang(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := importImages(h).Revert(ctx, []byte(`{}`), node.Silent{}); err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(systemd.verbs, "restart") {
				t.Errorf("systemctl was asked to %v", systemd.verbs)
			}
			err = containerd.With(daemon.Address, func(c *client.Client) error {
				left, err := imageNames(ctx, c)
				if len(left) > 0 {
					t.Errorf("%v are left", left)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// hungCgroup is not the parent that the tests of pkg/agent/cri look at, which run at the same time.
const hungCgroup = "/kubectl-runtime-hung-test"

func removeHungCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup" + hungCgroup, "/sys/fs/cgroup/*" + hungCgroup} {
		parents, _ := filepath.Glob(pattern)
		for _, parent := range parents {
			children, _ := filepath.Glob(filepath.Join(parent, "*"))
			for _, child := range append(children, parent) {
				_ = os.Remove(child) // a folder that is empty of processes; files of a cgroup cannot be removed
			}
		}
	}
}

func stopHungPods(t *testing.T, address string) {
	t.Helper()
	systemd := &hooked{Units: nodetest.NewUnits(t, node.ContainerdUnit), on: func(string) error { return errors.New("timed out") }}
	p := newPodStopper(&node.Host{Systemd: host.Systemd{Run: systemd, Dir: t.TempDir()}}, facts.Found{ContainerdAddress: address})
	p.endpoint, p.limits.ask = "unix://"+address, time.Second
	shims, containers, err := p.pods.find()
	if err != nil || len(shims) == 0 || len(containers) != 2 {
		t.Errorf("%d shims, %d processes of containers, %v", len(shims), len(containers), err)
	}
	if err := p.stop(t.Context(), node.Silent{}); err != nil {
		t.Error(err)
	}
	for _, process := range slices.Concat(shims, containers) {
		if now, err := host.ReadProcess(node.Proc, process.PID); err == nil && slices.Equal(now.Args, process.Args) {
			t.Errorf("%s runs on", strings.Join(process.Args, " "))
		}
	}
}

func importTestImage(t *testing.T, address string) {
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
