package host

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dropIns is systemctl show of a unit with these drop-ins.
type dropIns []string

func (d dropIns) Run(context.Context, string, ...string) (string, error) {
	return "DropInPaths=" + strings.Join(d, " ") + "\n", nil
}

// TestHoldBreaker: only what systemd reads behind our drop-in and what resets conditions takes the hold away.
func TestHoldBreaker(t *testing.T) {
	const reset = "[Unit]\nConditionPathExists=\n"
	for _, test := range []struct {
		name, text string
		breaks     bool
	}{
		{"10-kubeadm.conf", reset, false},
		{"zz-admin.conf", reset, false},
		{"zzz-admin.conf", reset, true},
		{"zzz-admin.conf", "# by hand\n[Unit]\nAfter=x\nConditionVirtualization = \n", true},
		{"zzz-admin.conf", "[Unit]\nConditionPathExists=/etc/x\n", false},
		{"zzz-admin.conf", "[Service]\nExecStart=\nConditionPathExists=\n", false},
		{"zzz-admin.conf", "[Unit]\n#ConditionPathExists=\n", false},
	} {
		path := filepath.Join(t.TempDir(), test.name)
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := Systemd{Run: dropIns{"/etc/systemd/system/kubelet.service.d/" + HoldName, path, path + ".gone"}}
		got, err := s.HoldBreaker(t.Context(), "kubelet.service")
		if want := map[bool]string{true: path}[test.breaks]; err != nil || got != want {
			t.Errorf("%s %q: %q, %v", test.name, test.text, got, err)
		}
	}
}
