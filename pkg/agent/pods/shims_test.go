package pods

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
)

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
	if err := endShims(t.Context(), podProcesses{proc: f.Dir, kill: f.Kill}, root); err != nil {
		t.Fatal(err)
	}
	if slices.Sort(f.Killed); !slices.Equal(f.Killed, []int{20, 21, 50, 51, 60, 61, 80, 81, 90, 91}) {
		t.Errorf("killed %v", f.Killed)
	}
}
