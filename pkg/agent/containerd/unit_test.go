package containerd

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

func TestUnit(t *testing.T) {
	unit := string(Unit("/opt/c/bin/containerd", []string{"/opt/c/bin", "/opt/docker"}, "1024:524288"))
	for _, want := range []string{
		"\nExecStart=/opt/c/bin/containerd\n", "\nEnvironment=PATH=/opt/c/bin:/opt/docker:/usr/local/sbin:", "\nLimitNOFILE=1024:524288\n",
		"\nKillMode=process\n", "\nDelegate=yes\n", "\nWantedBy=multi-user.target\n",
	} {
		if !strings.Contains(unit, want) {
			t.Errorf("no %q in\n%s", want, unit)
		}
	}
	if analyze, err := exec.LookPath("systemd-analyze"); err == nil {
		path := filepath.Join(t.TempDir(), "containerd.service")
		if err := host.Replace(path, []byte(strings.NewReplacer("/opt/c/bin/containerd", "/bin/true", "/sbin/modprobe", "/bin/true").Replace(unit)), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", path).CombinedOutput(); err != nil {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
	}
}

// TestReplacement: the arguments of the service that is replaced are kept, whatever is in them (systemd.service(5), "Command lines").
func TestReplacement(t *testing.T) {
	dropIn := string(Replacement("/opt/c/bin/containerd", []string{"/opt/c/bin"}, []string{"--config", "/etc/my containerd/100%/$x.toml", `a"b\c`, ""}))
	if want := "\nExecStart=\nExecStart=/opt/c/bin/containerd --config \"/etc/my containerd/100%%/$$x.toml\" a\\\"b\\\\c \"\"\n"; !strings.Contains(dropIn, want) {
		t.Errorf("no %q in\n%s", want, dropIn)
	}
}

// TestAddress: another address is written where the file says, or means, another one.
func TestAddress(t *testing.T) {
	for _, test := range []struct{ file, address, want string }{
		{"", "", DefaultAddress},
		{"", DefaultAddress, DefaultAddress},
		{"", "/run/x.sock", "/run/x.sock"},
		{"version = 2\n[grpc]\naddress = \"/run/theirs.sock\"\nuid = 7\n", "", "/run/theirs.sock"},
		{"version = 2\n[grpc]\naddress = \"/run/theirs.sock\"\nuid = 7\n", "/run/theirs.sock", "/run/theirs.sock"},
		{"version = 2\n[grpc]\naddress = \"" + DefaultAddress + "\"\nuid = 7\n", "/run/x.sock", "/run/x.sock"},
	} {
		out, err := Render([]byte(test.file), Settings{Address: test.address})
		if err != nil {
			t.Fatal(err)
		}
		layout, err := ReadLayout(out)
		if err != nil || layout.Address != test.want {
			t.Errorf("%q with %q: %q %v", test.file, test.address, layout.Address, err)
		}
		if strings.Contains(test.file, "uid") && !strings.Contains(string(out), "uid = 7") {
			t.Errorf("a setting is lost:\n%s", out)
		}
		if test.file == "" && test.want == DefaultAddress && strings.Contains(string(out), "grpc]") {
			t.Errorf("a table that says nothing is written:\n%s", out)
		}
	}
}
