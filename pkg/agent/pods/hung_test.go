package pods

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
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
			systemd := &nodetest.Hooked{Units: nodetest.NewUnits(t, node.ContainerdUnit), On: func(string) error { return nil }}
			h := &node.Host{Systemd: host.Systemd{Run: systemd, Dir: t.TempDir()}}
			if err := wakeIfHung(t.Context(), h, runtime.Endpoint, 300*time.Millisecond, node.Silent{}); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(systemd.Verbs, " "); got != test.verbs {
				t.Errorf("containerd.service: %q, want %q", got, test.verbs)
			}
		})
	}
}

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
			nodetest.ImportTestImage(t, daemon.Address)
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
	systemd := &nodetest.Hooked{Units: nodetest.NewUnits(t, node.ContainerdUnit), On: func(string) error { return errors.New("timed out") }}
	p := NewStopper(&node.Host{Systemd: host.Systemd{Run: systemd, Dir: t.TempDir()}}, facts.Found{ContainerdAddress: address})
	p.endpoint, p.limits.ask = "unix://"+address, time.Second
	shims, containers, err := p.pods.find()
	if err != nil || len(shims) == 0 || len(containers) != 2 {
		t.Errorf("%d shims, %d processes of containers, %v", len(shims), len(containers), err)
	}
	if err := p.Stop(t.Context(), node.Silent{}); err != nil {
		t.Error(err)
	}
	for _, process := range slices.Concat(shims, containers) {
		if now, err := host.ReadProcess(node.Proc, process.PID); err == nil && slices.Equal(now.Args, process.Args) {
			t.Errorf("%s runs on", strings.Join(process.Args, " "))
		}
	}
}
