package inspect

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestPrivateContainerd(t *testing.T) {
	for _, test := range []struct {
		name string
		// processes are PID, program, parent.
		processes [][3]string
		daemon    int
		want      bool
	}{
		{"packages", [][3]string{{"10", "containerd", "1"}, {"20", "dockerd", "1"}}, 20, false},
		{"static binaries", [][3]string{{"20", "dockerd", "1"}, {"21", "containerd", "20"}}, 20, true},
		{"another Docker's", [][3]string{{"10", "containerd", "1"}, {"20", "dockerd", "1"}, {"30", "dockerd", "1"}, {"31", "containerd", "30"}}, 20, true},
		{"Docker 18.06", [][3]string{{"20", "dockerd", "1"}, {"21", "docker-containerd", "20"}}, 20, true},
		{"CentOS 7", [][3]string{{"20", "dockerd-current", "1"}, {"21", "docker-containerd-current", "20"}}, 20, true},
		{"another name", [][3]string{{"20", "moby-engine", "1"}, {"21", "containerd", "20"}}, 20, true},
		{"a shim", [][3]string{{"20", "dockerd", "1"}, {"21", "containerd-shim", "20"}}, 20, false},
		{"no Docker", [][3]string{{"10", "containerd", "1"}}, 0, false},
	} {
		proc := t.TempDir()
		for _, p := range test.processes {
			dir := filepath.Join(proc, p[0])
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for name, content := range map[string]string{"cmdline": p[1] + "\x00", "cgroup": "0::/\n", "stat": fmt.Sprintf("%s (%s) S %s 1 1", p[0], p[1], p[2])} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink("/usr/bin/"+p[1], filepath.Join(dir, "exe")); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := privateContainerd(proc, test.daemon); err != nil || got != test.want {
			t.Errorf("%s: %t %v", test.name, got, err)
		}
	}
}
