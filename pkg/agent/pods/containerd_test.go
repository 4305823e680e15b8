package pods

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cni"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// TestStopPodsOfContainerd: undoing the kubelet's start ends with no process of containerd's pods left, or with an error.
func TestStopPodsOfContainerd(t *testing.T) {
	for _, test := range []struct {
		name    string
		down    bool     // containerd.service
		hangs   []string // CRI calls
		cured   bool     // by a restart
		obeys   bool     // containers end when CRI stops them
		undying []int
		verbs   string
		killed  []int
		want    string
	}{
		{name: "CRI stops them", obeys: true},
		{name: "CRI only says so", killed: []int{11, 12, 13, 14}},
		{name: "one stop hangs", hangs: []string{"StopContainer"}, killed: []int{10, 11, 12, 13, 14}},
		{name: "CRI hangs until it is restarted", hangs: []string{"*"}, cured: true, obeys: true, verbs: "kill restart"},
		{name: "CRI hangs for good", hangs: []string{"*"}, verbs: "kill restart", killed: []int{10, 11, 12, 13, 14}},
		{name: "containerd is down, its pods run", down: true, killed: []int{10, 11, 12, 13, 14}},
		{name: "even SIGKILL does nothing", hangs: []string{"*"}, undying: []int{12}, verbs: "kill restart", killed: []int{11, 12, 13, 14}, want: "init (pid 12)"},
		{name: "nor where CRI says that all is well", undying: []int{12}, killed: []int{11, 12, 13, 14}, want: "init (pid 12)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			runtime, f := nodetest.StartCRI(t, "app"), nodetest.NewProc(t)
			runtime.Set(test.hangs...)
			f.AddPods()
			f.Immortal = test.undying
			if test.obeys {
				runtime.Stopped = func() {
					for pid := 10; pid < 15; pid++ {
						_ = os.RemoveAll(filepath.Join(f.Dir, strconv.Itoa(pid)))
					}
				}
			}
			systemd := &nodetest.Hooked{Units: nodetest.NewUnits(t, node.ContainerdUnit)}
			systemd.Active[node.ContainerdUnit] = !test.down
			systemd.On = func(verb string) error {
				if verb == "restart" && test.cured {
					runtime.Set()
				}
				return nil
			}
			p := Stopper{
				h: &node.Host{Systemd: host.Systemd{Run: systemd, Dir: t.TempDir()}}, endpoint: runtime.Endpoint, pods: processesOf(f),
				limits: stopLimits{ask: 300 * time.Millisecond, stop: 300 * time.Millisecond, again: 300 * time.Millisecond, restart: time.Second, kill: time.Second},
			}
			err := p.Stop(t.Context(), node.Silent{})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if got := strings.Join(systemd.Verbs, " "); got != test.verbs {
				t.Errorf("containerd.service: %q", got)
			}
			if slices.Sort(f.Killed); !slices.Equal(f.Killed, test.killed) {
				t.Errorf("killed %v", f.Killed)
			}
		})
	}
}

// TestEndStray: a kubelet that somebody started in the middle of a cutover must not keep running on containerd beside Docker.
func TestEndStray(t *testing.T) {
	for _, test := range []struct {
		name    string
		runs    bool
		holding error
		stopped bool
		want    string
	}{
		{name: "it is down", runs: false},
		{name: "it runs", runs: true, stopped: true},
		{name: "it cannot be stopped", runs: true, holding: errors.New("it is active again"), want: "active again"},
	} {
		t.Run(test.name, func(t *testing.T) {
			runtime, f := nodetest.StartCRI(t, "app"), nodetest.NewProc(t)
			f.AddPods()
			systemd := nodetest.NewUnits(t, node.ContainerdUnit, kubelet.Unit)
			systemd.Active[kubelet.Unit] = test.runs
			stopped := false
			runtime.Stopped = func() {
				stopped = true
				if systemd.Active[kubelet.Unit] {
					t.Error("pods are stopped under a kubelet that starts them again")
				}
			}
			p := Stopper{
				h: &node.Host{Systemd: systemd.Systemd}, endpoint: runtime.Endpoint, pods: processesOf(f),
				limits: stopLimits{ask: time.Second, stop: time.Second, again: time.Second, restart: time.Second, kill: time.Second},
			}
			err := p.EndStray(t.Context(), func(context.Context) error {
				systemd.Active[kubelet.Unit] = test.holding != nil
				return test.holding
			}, node.Silent{})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if stopped != test.stopped || (len(f.Killed) > 0) != test.stopped {
				t.Errorf("pods stopped: %t, killed %v", stopped, f.Killed)
			}
		})
	}
}

// TestStopLimits: the last resort has to come within one attempt of the engine's, which are 3 min long, and leave it time to stop the
// kubelet.
func TestStopLimits(t *testing.T) {
	l := NewStopper(&node.Host{}, facts.Found{}).limits
	if sum := 4*l.ask + l.stop + l.again + l.restart + l.kill; sum > 160*time.Second {
		t.Errorf("%s", sum)
	}
	if l.stop <= 2*backGrace {
		t.Error("pods do not get their grace")
	}
}

// TestStopPodsWithoutAgent: on the way back, CNI DEL fails where the network's agent does not run. Nothing of the pods stays behind, and
// containerd can remove them later.
func TestStopPodsWithoutAgent(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			network := agenttest.NewNetwork(t, "10.253.93.0/24")
			endAgent := network.StartAgent(t)
			address := nodetest.StartOn(t, release, network)
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
				p := NewStopper(&node.Host{Systemd: nodetest.NewUnits(t, node.ContainerdUnit).Systemd}, facts.Found{ContainerdAddress: address})
				p.endpoint, p.leases = "unix://"+address, network.Leases
				heard := &warned{}
				if err := p.Stop(ctx, heard); err != nil {
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

// TestReleaseLost: the addresses of sandboxes that containerd has forgotten are freed in the kubelet's network, and only while Docker is down.
func TestReleaseLost(t *testing.T) {
	id := func(letter string) string { return strings.Repeat(letter, 64) }
	all := []string{"other/10.0.0.9", "pods/10.0.0.3", "pods/10.0.0.4", "pods/10.0.0.6"}
	for _, test := range []struct {
		name  string
		units []string
		fails string // a call of containerd's CRI
		want  []string
	}{
		{name: "Docker is down", want: []string{"other/10.0.0.9", "pods/10.0.0.3", "pods/10.0.0.6"}},
		{name: "Docker runs", units: []string{node.DockerUnit}, want: all},
		{name: "containerd fails", fails: "ListPodSandbox", want: all},
	} {
		t.Run(test.name, func(t *testing.T) {
			confDir, leases := t.TempDir(), t.TempDir()
			files := map[string]string{filepath.Join(confDir, "10-net.conflist"): `{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"ptp"}]}`}
			for address, owner := range map[string]string{
				"pods/10.0.0.3":  id("c"), // containerd's sandbox
				"pods/10.0.0.4":  id("d"), // forgotten
				"pods/10.0.0.6":  "default-" + id("d"),
				"other/10.0.0.9": id("e"),
			} {
				files[filepath.Join(leases, address)] = owner + "\r\neth0"
			}
			for path, content := range files {
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			runtime := nodetest.StartCRI(t)
			runtime.Sandboxes, runtime.Fails[test.fails] = []string{id("c")}, true
			found := facts.Found{CNIConfDir: confDir}
			found.Facts.NewEndpoint = runtime.Endpoint
			p := NewStopper(&node.Host{Systemd: nodetest.NewUnits(t, test.units...).Systemd}, found)
			p.leases = leases
			p.ReleaseLost(t.Context(), found, node.Silent{})
			left, err := cni.Leases(leases)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, lease := range left {
				got = append(got, lease.Network+"/"+lease.IP.String())
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("left: got %q, want %q", got, test.want)
			}
		})
	}
}
