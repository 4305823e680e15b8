package nodetest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Proc is a /proc whose processes end when they are killed.
type Proc struct {
	t        *testing.T
	Dir      string
	Immortal []int
	Killed   []int
}

// Add adds a process.
func (f *Proc) Add(pid string, parent int, cgroup, namespace string, args ...string) {
	f.t.Helper()
	dir := filepath.Join(f.Dir, pid)
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

// Kill ends a process unless it is immortal.
func (f *Proc) Kill(pid int) error {
	if !slices.Contains(f.Killed, pid) {
		f.Killed = append(f.Killed, pid)
	}
	if slices.Contains(f.Immortal, pid) {
		return nil
	}
	return os.RemoveAll(filepath.Join(f.Dir, strconv.Itoa(pid)))
}

// AddPods adds one pod of each who runs any: containerd as 10, Docker as 20, a containerd in a container as 30, one beside as 40.
func (f *Proc) AddPods() {
	shim := func(pid, namespace, address, pidNamespace string) {
		f.Add(pid, 1, "0::/system.slice/containerd.service\n", pidNamespace, "/usr/bin/containerd-shim-runc-v2",
			"-namespace", namespace, "-id", strings.Repeat(pid[:1], 64), "-address", address)
	}
	container := func(id string) string {
		return "0::/kubepods.slice/pod.slice/cri-containerd-" + strings.Repeat(id, 64) + ".scope"
	}
	shim("10", "k8s.io", "/run/containerd/containerd.sock", "host")
	f.Add("11", 10, container("a")+"\n", "pod", "/pause")
	f.Add("12", 10, container("b")+"/init.scope\n", "pod", "/sbin/init") // a systemd in the container
	f.Add("13", 12, container("b")+"/app.slice\n", "pod", "/app")
	f.Add("14", 10, "0::/system.slice/containerd.service\n", "host", "runc", "init") // not in its container yet
	shim("20", "moby", "/run/containerd/containerd.sock", "host")
	f.Add("21", 20, "0::/docker/"+strings.Repeat("c", 64)+"\n", "db", "/db")
	shim("30", "k8s.io", "/run/containerd/containerd.sock", "kind")
	f.Add("31", 30, "0::/docker/"+strings.Repeat("d", 64)+"/kubepods/"+strings.Repeat("e", 64)+"\n", "pod", "/nested")
	shim("40", "k8s.io", "/run/k3s/containerd/containerd.sock", "host")
	f.Add("41", 40, container("f")+"\n", "pod", "/other")
}

// NewProc has the processes 1 and self.
func NewProc(t *testing.T) *Proc {
	t.Helper()
	f := &Proc{t: t, Dir: t.TempDir()}
	f.Add("self", 0, "0::/\n", "host", "agent")
	f.Add("1", 0, "0::/init.scope\n", "host", "/sbin/init")
	return f
}
