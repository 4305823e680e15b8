package pods

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
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
			if err := endShims(ctx, podProcesses{proc: f.Dir, freezer: freezer, kill: kill}, root); err != nil {
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
