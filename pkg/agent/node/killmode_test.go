package node_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// TestKillMode: a containerd is restarted only where the containers of its shims outlive that.
func TestKillMode(t *testing.T) {
	dir := t.TempDir()
	unit, first, second := filepath.Join(dir, "containerd.service"), filepath.Join(dir, "10-a.conf"), filepath.Join(dir, "20-b.conf")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(unit, "[Unit]\nKillMode=process\n[Service]\nExecStart=/usr/bin/containerd\n#KillMode=process\n")
	write(first, "# by hand\n[Service]\nKillMode=process\n")
	write(second, "[Service]\nTasksMax=infinity\n\nKillMode = control-group\n")
	const cgroup, kata = "/system.slice/containerd.service", "/opt/kata/bin/shim"
	for _, test := range []struct {
		name, mode, dropIns string
		stopped             bool
		shim                string // its program
		in                  string // its cgroup
		want                string
	}{
		{name: "as packages have it", mode: "process", shim: "/usr/bin/containerd-shim-runc-v2", in: cgroup},
		{name: "systemd's default", mode: "control-group", shim: "/usr/bin/containerd-shim-runc-v2", in: cgroup, want: "by systemd's default, since neither " + unit},
		{name: "a drop-in", mode: "control-group", dropIns: first + " " + second, shim: "containerd-shim", in: cgroup, want: "KillMode=control-group (" + second + ":4)"},
		{name: "a drop-in that is gone", mode: "mixed", dropIns: first + " " + second + ".gone", shim: kata, in: cgroup + "/x", want: "KillMode=mixed (" + first + ":3)"},
		{name: "shims elsewhere", mode: "mixed", shim: "containerd-shim-runc-v2", in: "/shims"},
		{name: "another service's", mode: "mixed", shim: "containerd-shim-runc-v2", in: cgroup + "2"},
		{name: "no shims", mode: "control-group", shim: "/usr/bin/ctr", in: cgroup},
		{name: "not running", mode: "control-group", stopped: true, shim: "containerd-shim-runc-v2", in: cgroup},
		{name: "nothing ends it", mode: "none", shim: "/usr/bin/ctr", in: cgroup, want: "would leave the old containerd running"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := nodetest.NewProc(t)
			f.Add("10", 1, "0::"+cgroup+"\n", "host", "/usr/bin/containerd")
			args := []string{test.shim, "-namespace", "moby", "-address", "/run/containerd/containerd.sock", "-id", strings.Repeat("1", 64)}
			if test.shim == "/usr/bin/ctr" {
				args = args[:5]
			}
			f.Add("20", 1, "12:pids:/\n1:name=systemd:"+test.in+"\n", "host", args...)
			pid := map[bool]string{true: "0", false: "10"}[test.stopped]
			h := &node.Host{Systemd: host.Systemd{Run: nodetest.Says{node.ContainerdUnit: "MainPID=" + pid + "\nControlGroup=" + cgroup + "\nKillMode=" + test.mode +
				"\nFragmentPath=" + unit + "\nDropInPaths=" + test.dropIns + "\n"}}}
			mode, err := node.ContainerdKillMode(t.Context(), h, f.Dir)
			if err != nil {
				t.Fatal(err)
			}
			err = mode.Restartable()
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v", err)
			}
			var refused *node.Refusal
			if errors.As(err, &refused) != (err != nil) {
				t.Errorf("%v is no refusal", err)
			}
		})
	}
}
