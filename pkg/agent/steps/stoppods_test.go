package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
)

// fakeProc is a /proc whose processes end when they are killed.
type fakeProc struct {
	t        *testing.T
	dir      string
	immortal []int
	killed   []int
}

func newFakeProc(t *testing.T) *fakeProc {
	t.Helper()
	f := &fakeProc{t: t, dir: t.TempDir()}
	f.add("self", 0, "0::/\n", "host", "agent")
	f.add("1", 0, "0::/init.scope\n", "host", "/sbin/init")
	return f
}

func (f *fakeProc) add(pid string, parent int, cgroup, namespace string, args ...string) {
	f.t.Helper()
	dir := filepath.Join(f.dir, pid)
	if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o700); err != nil {
		f.t.Fatal(err)
	}
	for name, content := range map[string]string{
		"cmdline": strings.Join(args, "\x00") + "\x00", "cgroup": cgroup, "stat": fmt.Sprintf("%s (a) b) S %d 1 1", pid, parent),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"exe": args[0], "ns/pid": namespace} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fakeProc) kill(pid int) error {
	if !slices.Contains(f.killed, pid) {
		f.killed = append(f.killed, pid)
	}
	if slices.Contains(f.immortal, pid) {
		return nil
	}
	return os.RemoveAll(filepath.Join(f.dir, strconv.Itoa(pid)))
}

func (f *fakeProc) processes() *podProcesses {
	return &podProcesses{proc: f.dir, address: "/run/containerd/containerd.sock", namespace: podNamespace, kill: f.kill}
}

// addPods adds one pod of each who runs any: containerd as 10, Docker as 20, a containerd in a container as 30, one beside as 40.
func (f *fakeProc) addPods() {
	shim := func(pid, namespace, address, pidNamespace string) {
		f.add(pid, 1, "0::/system.slice/containerd.service\n", pidNamespace, "/usr/bin/containerd-shim-runc-v2",
			"-namespace", namespace, "-id", strings.Repeat(pid[:1], 64), "-address", address)
	}
	container := func(id string) string {
		return "0::/kubepods.slice/pod.slice/cri-containerd-" + strings.Repeat(id, 64) + ".scope"
	}
	shim("10", "k8s.io", "/run/containerd/containerd.sock", "host")
	f.add("11", 10, container("a")+"\n", "pod", "/pause")
	f.add("12", 10, container("b")+"/init.scope\n", "pod", "/sbin/init") // a systemd in the container
	f.add("13", 12, container("b")+"/app.slice\n", "pod", "/app")
	f.add("14", 10, "0::/system.slice/containerd.service\n", "host", "runc", "init") // not in its container yet
	shim("20", "moby", "/run/containerd/containerd.sock", "host")
	f.add("21", 20, "0::/docker/"+strings.Repeat("c", 64)+"\n", "db", "/db")
	shim("30", "k8s.io", "/run/containerd/containerd.sock", "kind")
	f.add("31", 30, "0::/docker/"+strings.Repeat("d", 64)+"/kubepods/"+strings.Repeat("e", 64)+"\n", "pod", "/nested")
	shim("40", "k8s.io", "/run/k3s/containerd/containerd.sock", "host")
	f.add("41", 40, container("f")+"\n", "pod", "/other")
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
			f := newFakeProc(t)
			f.addPods()
			f.immortal = test.immortal
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			err := f.processes().end(ctx, test.shims)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v", err)
			}
			if slices.Sort(f.killed); !slices.Equal(f.killed, test.killed) {
				t.Errorf("killed %v", f.killed)
			}
		})
	}
}

// TestEndDockerShims: a container that runc was making when Docker was stopped is none that Docker would tell of. Those of a second Docker
// go on, on the same containerd, too.
func TestEndDockerShims(t *testing.T) {
	f := newFakeProc(t)
	f.addPods()
	const host = "/run/containerd/containerd.sock"
	shim := func(pid, namespace, address string) {
		f.add(pid, 1, "0::/\n", "host", "/usr/bin/containerd-shim-runc-v2", "-namespace", namespace, "-id", strings.Repeat(pid[:1], 64), "-address", address)
	}
	shim("60", "moby", "/var/run/docker/containerd/containerd.sock")
	f.add("61", 60, "0::/\n", "host", "runc", "init")
	shim("70", "moby", host) // a second Docker's
	f.add("71", 70, "0::/docker/"+strings.Repeat("e", 64)+"\n", "db", "/db")
	shim("80", "moby", host) // a pod's of which Docker has lost sight
	f.add("81", 80, "0::/kubepods/"+strings.Repeat("9", 64)+"\n", "etcd", "/etcd")
	shim("90", "docker", "/run/other.sock") // where its configuration says so
	f.add("91", 90, "0::/docker/"+strings.Repeat("0", 64)+"\n", "db", "/db")
	f.add("50", 1, "0::/\n", "host", "docker-containerd-shim", "-namespace", "moby", "-workdir", // of Docker 18.06
		"/var/lib/docker/containerd/daemon/io.containerd.runtime.v1.linux/moby/"+strings.Repeat("5", 64), "-address", "/run/docker/containerd/docker-containerd.sock")
	f.add("51", 50, "0::/docker/"+strings.Repeat("5", 64)+"\n", "db", "/db")
	root := t.TempDir()
	for _, id := range []string{"2", "5", "6", "9"} {
		if err := os.MkdirAll(filepath.Join(root, "containers", strings.Repeat(id, 64)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := endDockerShims(t.Context(), podProcesses{proc: f.dir, kill: f.kill}, root); err != nil {
		t.Fatal(err)
	}
	if slices.Sort(f.killed); !slices.Equal(f.killed, []int{20, 21, 50, 51, 60, 61, 80, 81, 90, 91}) {
		t.Errorf("killed %v", f.killed)
	}
}

// TestHostInContainer: where the host is itself a container of somebody's, its own cgroup has a container's name.
func TestHostInContainer(t *testing.T) {
	f := newFakeProc(t)
	node := "0::/docker/" + strings.Repeat("d", 64)
	if err := os.WriteFile(filepath.Join(f.dir, "1/cgroup"), []byte(node+"/init.scope\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.add("10", 1, node+"/system.slice/containerd.service\n", "host", "containerd-shim-runc-v2", "-namespace", "k8s.io",
		"-id", strings.Repeat("1", 64), "-address", "/run/containerd/containerd.sock")
	f.add("11", 10, node+"/kubepods/"+strings.Repeat("a", 64)+"\n", "pod", "/pause")
	f.add("12", 10, node+"/system.slice/containerd.service\n", "host", "runc", "init")
	f.add("50", 1, node+"/system.slice/ssh.service\n", "host", "sshd")
	if err := f.processes().end(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if slices.Sort(f.killed); !slices.Equal(f.killed, []int{10, 11, 12}) {
		t.Errorf("killed %v", f.killed)
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
			f, freezer := newFakeProc(t), t.TempDir()
			state := filepath.Join(freezer, test.frozen, "freezer.state")
			if err := os.MkdirAll(filepath.Dir(state), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(state, []byte("FROZEN"), 0o600); err != nil {
				t.Fatal(err)
			}
			f.add("20", 1, "5:freezer:/\n", "host", "/usr/bin/containerd-shim-runc-v2", "-namespace", "moby", "-id", id,
				"-address", "/run/containerd/containerd.sock")
			f.add("21", 20, test.cgroups, "db", "runc", "init")
			kill := func(pid int) error {
				if text, err := os.ReadFile(state); err != nil || pid == 21 && string(text) != "THAWED" {
					f.killed = append(f.killed, pid)
					return err
				}
				return f.kill(pid)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Join(root, "containers", id), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := endDockerShims(ctx, podProcesses{proc: f.dir, freezer: freezer, kill: kill}, root); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(f.dir, "21")); err == nil || len(f.killed) == 0 || f.killed[0] != 21 {
				t.Errorf("killed %v, %v", f.killed, err)
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
	*units
	verbs []string
	on    func(verb string) error
}

func (s *hooked) Run(ctx context.Context, name string, args ...string) (string, error) {
	if verb := args[0]; args[len(args)-1] == containerdUnit && (verb == "kill" || verb == "restart") {
		s.verbs = append(s.verbs, verb)
		return "", s.on(verb)
	}
	return s.units.Run(ctx, name, args...)
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
			runtime, f := startFakeCRI(t, "app"), newFakeProc(t)
			runtime.set(test.hangs...)
			f.addPods()
			f.immortal = test.undying
			if test.obeys {
				runtime.stopped = func() {
					for pid := 10; pid < 15; pid++ {
						_ = os.RemoveAll(filepath.Join(f.dir, strconv.Itoa(pid)))
					}
				}
			}
			systemd := &hooked{units: newUnits(t, containerdUnit)}
			systemd.active[containerdUnit] = !test.down
			systemd.on = func(verb string) error {
				if verb == "restart" && test.cured {
					runtime.set()
				}
				return nil
			}
			p := podStopper{
				h: &Host{Systemd: host.Systemd{Run: systemd, Dir: t.TempDir()}}, endpoint: runtime.endpoint, pods: f.processes(),
				limits: stopLimits{ask: 300 * time.Millisecond, stop: 300 * time.Millisecond, again: 300 * time.Millisecond, restart: time.Second, kill: time.Second},
			}
			err := p.stop(t.Context(), quiet{})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if got := strings.Join(systemd.verbs, " "); got != test.verbs {
				t.Errorf("containerd.service: %q", got)
			}
			if slices.Sort(f.killed); !slices.Equal(f.killed, test.killed) {
				t.Errorf("killed %v", f.killed)
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
			runtime, f := startFakeCRI(t, "app"), newFakeProc(t)
			f.addPods()
			systemd := newUnits(t, containerdUnit, kubelet.Unit)
			systemd.active[kubelet.Unit] = test.runs
			stopped := false
			runtime.stopped = func() {
				stopped = true
				if systemd.active[kubelet.Unit] {
					t.Error("pods are stopped under a kubelet that starts them anew")
				}
			}
			p := podStopper{
				h: &Host{Systemd: systemd.systemd}, endpoint: runtime.endpoint, pods: f.processes(),
				limits: stopLimits{ask: time.Second, stop: time.Second, again: time.Second, restart: time.Second, kill: time.Second},
			}
			err := p.endStray(t.Context(), func(context.Context) error {
				systemd.active[kubelet.Unit] = test.holding != nil
				return test.holding
			}, quiet{})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if stopped != test.stopped || (len(f.killed) > 0) != test.stopped {
				t.Errorf("pods stopped: %t, killed %v", stopped, f.killed)
			}
		})
	}
}

// TestStopLimits: the last resort has to come within one attempt of the engine's, which are 3 min long, and leave it time to stop the
// kubelet.
func TestStopLimits(t *testing.T) {
	l := newPodStopper(&Host{}, Found{}).limits
	if sum := 4*l.ask + l.stop + l.again + l.restart + l.kill; sum > 160*time.Second {
		t.Errorf("%s", sum)
	}
	if l.stop <= 2*backGrace {
		t.Error("pods do not get their grace")
	}
}
