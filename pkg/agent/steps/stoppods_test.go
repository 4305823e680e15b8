package steps

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

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

func processesOf(f *nodetest.Proc) *podProcesses {
	return &podProcesses{proc: f.Dir, address: "/run/containerd/containerd.sock", namespace: podNamespace, kill: f.Kill}
}

func TestPodProcesses(t *testing.T) {
	for _, test := range []struct {
		name     string
		shims    bool
		immortal []int
		killed   []int
		want     string
	}{
		{"with shims", true, nil, []int{10, 11, 12, 13, 14}, ""},
		{"containers only", false, nil, []int{11, 12, 13, 14}, ""},
		{"one cannot be killed", true, []int{13}, []int{11, 12, 13, 14}, "1 process(es) of containerd's pods run even after SIGKILL: app (pid 13)"},
		{"a shim cannot be killed", true, []int{10}, []int{10, 11, 12, 13, 14}, "1 shim(s) of containerd's pods run even after SIGKILL: containerd-shim-runc-v2 (pid 10)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := nodetest.NewProc(t)
			f.AddPods()
			f.Immortal = test.immortal
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			err := processesOf(f).end(ctx, test.shims)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v", err)
			}
			if slices.Sort(f.Killed); !slices.Equal(f.Killed, test.killed) {
				t.Errorf("killed %v", f.Killed)
			}
		})
	}
}

// TestEndDockerShims: a container that runc was making when Docker was stopped is none that Docker would tell of. Those of a second Docker
// go on, on the same containerd, too.
func TestEndDockerShims(t *testing.T) {
	f := nodetest.NewProc(t)
	f.AddPods()
	const host = "/run/containerd/containerd.sock"
	shim := func(pid, namespace, address string) {
		f.Add(pid, 1, "0::/\n", "host", "/usr/bin/containerd-shim-runc-v2", "-namespace", namespace, "-id", strings.Repeat(pid[:1], 64), "-address", address)
	}
	shim("60", "moby", "/var/run/docker/containerd/containerd.sock")
	f.Add("61", 60, "0::/\n", "host", "runc", "init")
	shim("70", "moby", host) // a second Docker's
	f.Add("71", 70, "0::/docker/"+strings.Repeat("e", 64)+"\n", "db", "/db")
	shim("80", "moby", host) // a pod's of which Docker has lost sight
	f.Add("81", 80, "0::/kubepods/"+strings.Repeat("9", 64)+"\n", "etcd", "/etcd")
	shim("90", "docker", "/run/other.sock") // where its configuration says so
	f.Add("91", 90, "0::/docker/"+strings.Repeat("0", 64)+"\n", "db", "/db")
	f.Add("50", 1, "0::/\n", "host", "docker-containerd-shim", "-namespace", "moby", "-workdir", // of Docker 18.06
		"/var/lib/docker/containerd/daemon/io.containerd.runtime.v1.linux/moby/"+strings.Repeat("5", 64), "-address", "/run/docker/containerd/docker-containerd.sock")
	f.Add("51", 50, "0::/docker/"+strings.Repeat("5", 64)+"\n", "db", "/db")
	root := t.TempDir()
	for _, id := range []string{"2", "5", "6", "9"} {
		if err := os.MkdirAll(filepath.Join(root, "containers", strings.Repeat(id, 64)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := endDockerShims(t.Context(), podProcesses{proc: f.Dir, kill: f.Kill}, root); err != nil {
		t.Fatal(err)
	}
	if slices.Sort(f.Killed); !slices.Equal(f.Killed, []int{20, 21, 50, 51, 60, 61, 80, 81, 90, 91}) {
		t.Errorf("killed %v", f.Killed)
	}
}

// TestHostInContainer: where the host is itself a container of somebody's, its own cgroup has a container's name.
func TestHostInContainer(t *testing.T) {
	f := nodetest.NewProc(t)
	node := "0::/docker/" + strings.Repeat("d", 64)
	if err := os.WriteFile(filepath.Join(f.Dir, "1/cgroup"), []byte(node+"/init.scope\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.Add("10", 1, node+"/system.slice/containerd.service\n", "host", "containerd-shim-runc-v2", "-namespace", "k8s.io",
		"-id", strings.Repeat("1", 64), "-address", "/run/containerd/containerd.sock")
	f.Add("11", 10, node+"/kubepods/"+strings.Repeat("a", 64)+"\n", "pod", "/pause")
	f.Add("12", 10, node+"/system.slice/containerd.service\n", "host", "runc", "init")
	f.Add("50", 1, node+"/system.slice/ssh.service\n", "host", "sshd")
	if err := processesOf(f).end(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if slices.Sort(f.Killed); !slices.Equal(f.Killed, []int{10, 11, 12}) {
		t.Errorf("killed %v", f.Killed)
	}
}

// TestThaw: on cgroup v1 no SIGKILL ends a process before its cgroup is thawed, be it its own or one above.
func TestThaw(t *testing.T) {
	id := strings.Repeat("a", 64)
	for _, test := range []struct {
		name, cgroups, frozen string
	}{
		{"paused", "7:memory:/docker/" + id + "\n5:freezer:/docker/" + id + "\n", "docker/" + id},
		{"by systemd's driver", "5:freezer:/pod.slice/docker-" + id + ".scope\n", "pod.slice/docker-" + id + ".scope"},
		{"a cgroup in the container", "5:freezer,pids:/docker/" + id + "/app/one\n", "docker/" + id + "/app/one"},
		{"above it", "5:freezer:/docker/" + id + "/app/one\n", "docker/" + id},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, freezer := nodetest.NewProc(t), t.TempDir()
			state := filepath.Join(freezer, test.frozen, "freezer.state")
			if err := os.MkdirAll(filepath.Dir(state), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(state, []byte("FROZEN"), 0o600); err != nil {
				t.Fatal(err)
			}
			f.Add("20", 1, "5:freezer:/\n", "host", "/usr/bin/containerd-shim-runc-v2", "-namespace", "moby", "-id", id,
				"-address", "/run/containerd/containerd.sock")
			f.Add("21", 20, test.cgroups, "db", "runc", "init")
			kill := func(pid int) error {
				if text, err := os.ReadFile(state); err != nil || pid == 21 && string(text) != "THAWED" {
					f.Killed = append(f.Killed, pid)
					return err
				}
				return f.Kill(pid)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Join(root, "containers", id), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := endDockerShims(ctx, podProcesses{proc: f.Dir, freezer: freezer, kill: kill}, root); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(f.Dir, "21")); err == nil || len(f.Killed) == 0 || f.Killed[0] != 21 {
				t.Errorf("killed %v, %v", f.Killed, err)
			}
		})
	}
}

func FuzzContainerCgroups(f *testing.F) {
	f.Add("0::/kubepods/pod1/x")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		for _, cgroup := range containerCgroups(text) {
			if !inCgroup(text, cgroup) {
				t.Errorf("%q is not in %q", text, cgroup)
			}
		}
	})
}

// hooked is a systemd that notes what is done to containerd.
type hooked struct {
	*nodetest.Units
	verbs []string
	on    func(verb string) error
}

func (s *hooked) Run(ctx context.Context, name string, args ...string) (string, error) {
	if verb := args[0]; args[len(args)-1] == node.ContainerdUnit && (verb == "kill" || verb == "restart") {
		s.verbs = append(s.verbs, verb)
		return "", s.on(verb)
	}
	return s.Units.Run(ctx, name, args...)
}

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
			systemd := &hooked{Units: nodetest.NewUnits(t, node.ContainerdUnit)}
			systemd.Active[node.ContainerdUnit] = !test.down
			systemd.on = func(verb string) error {
				if verb == "restart" && test.cured {
					runtime.Set()
				}
				return nil
			}
			p := podStopper{
				h: &node.Host{Systemd: host.Systemd{Run: systemd, Dir: t.TempDir()}}, endpoint: runtime.Endpoint, pods: processesOf(f),
				limits: stopLimits{ask: 300 * time.Millisecond, stop: 300 * time.Millisecond, again: 300 * time.Millisecond, restart: time.Second, kill: time.Second},
			}
			err := p.stop(t.Context(), node.Silent{})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if got := strings.Join(systemd.verbs, " "); got != test.verbs {
				t.Errorf("containerd.service: %q", got)
			}
			if slices.Sort(f.Killed); !slices.Equal(f.Killed, test.killed) {
				t.Errorf("killed %v", f.Killed)
			}
		})
	}
}

// TestEndStray: a kubelet that somebody started in the middle of a cutover must not go on with containerd beside Docker.
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
					t.Error("pods are stopped under a kubelet that starts them anew")
				}
			}
			p := podStopper{
				h: &node.Host{Systemd: systemd.Systemd}, endpoint: runtime.Endpoint, pods: processesOf(f),
				limits: stopLimits{ask: time.Second, stop: time.Second, again: time.Second, restart: time.Second, kill: time.Second},
			}
			err := p.endStray(t.Context(), func(context.Context) error {
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
	l := newPodStopper(&node.Host{}, facts.Found{}).limits
	if sum := 4*l.ask + l.stop + l.again + l.restart + l.kill; sum > 160*time.Second {
		t.Errorf("%s", sum)
	}
	if l.stop <= 2*backGrace {
		t.Error("pods do not get their grace")
	}
}
