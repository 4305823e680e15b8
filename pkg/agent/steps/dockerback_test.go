package steps

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// fakeUnits is systemctl show over what it prints for each unit; kubelet --version and its like are there by program.
type fakeUnits map[string]string

func (f fakeUnits) Run(_ context.Context, name string, args ...string) (string, error) {
	if name == "systemctl" {
		name = args[len(args)-1]
	}
	out, ok := f[name]
	if !ok {
		return "", fmt.Errorf("%s %q: not expected", name, args)
	}
	return out, nil
}

// warnings is a Report that keeps these.
type warnings struct {
	quiet
	list []string
}

func (w *warnings) Warn(text string) { w.list = append(w.list, text) }

func TestDockerThere(t *testing.T) {
	dir := t.TempDir()
	program, root := filepath.Join(dir, "dockerd"), filepath.Join(dir, "docker")
	for _, test := range []struct{ name, load, program, root, want string }{
		{"all there", "loaded", program, root, ""},
		{"the package was removed", "not-found", program, root, "docker.service is not there any more"},
		{"the unit was left", "loaded", program + ".gone", root, "dockerd.gone, which docker.service starts, is not there any more"},
		{"the data was removed", "loaded", program, root + ".gone", "docker.gone is not there any more"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := os.MkdirAll(root, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(program, nil, 0o700); err != nil {
				t.Fatal(err)
			}
			units := fakeUnits{
				"docker.service": "LoadState=" + test.load + "\nExecStart={ path=" + test.program + " ; argv[]=" + test.program + " -H fd:// ; ignore_errors=no }\n",
				"docker.socket":  "LoadState=loaded\nExecStart=\n",
			}
			h := hostWith(t, inventory{Facts: protocol.Facts{DockerRoot: test.root}}, protocol.Spec{})
			h.Systemd = host.Systemd{Run: units, Dir: t.TempDir()}
			err := h.dockerThere(t.Context(), []host.UnitState{{Name: "docker.socket"}, {Name: "docker.service"}})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// TestClearSockets: a directory where a socket was, which a runtime made for a hostPath without a type.
func TestClearSockets(t *testing.T) {
	dir := t.TempDir()
	empty, full, gone := filepath.Join(dir, "empty.sock"), filepath.Join(dir, "full.sock"), filepath.Join(dir, "gone.sock")
	for _, path := range []string{empty, filepath.Join(full, "x")} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	clear := func(path string) (string, error) {
		h := &Host{Systemd: host.Systemd{Run: fakeUnits{"docker.socket": "Listen=" + path + " (Stream)\n"}}}
		var said warnings
		err := h.clearSockets(t.Context(), []host.UnitState{{Name: "docker.service"}, {Name: "docker.socket"}}, &said)
		return strings.Join(said.list, "; "), err
	}
	if said, err := clear(empty); err != nil || !host.Absent(empty) || !strings.Contains(said, empty+" was a directory") {
		t.Errorf("empty: %v, said %q", err, said)
	}
	if _, err := clear(full); err == nil || host.Absent(filepath.Join(full, "x")) {
		t.Errorf("one that holds something: %v", err)
	}
	if said, err := clear(gone); err != nil || said != "" {
		t.Errorf("gone: %v, said %q", err, said)
	}
}

// TestSameKubelet: an upgrade of the kubelet rewrites the files that the switch had changed.
func TestSameKubelet(t *testing.T) {
	for _, test := range []struct {
		name, version, now, want string
	}{
		{"as the switch left it", "v1.33.1", "new", ""},
		{"upgraded, file as the switch left it", "v1.35.0", "new", ""},
		{"edited by hand", "v1.33.4", "edited", ""},
		{"upgraded", "v1.35.0", "edited", "the kubelet was v1.33.1 when it was switched, is v1.35.0 now"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			unit, flags := filepath.Join(dir, "kubelet.service"), filepath.Join(dir, "kubeadm-flags.env")
			for path, text := range map[string]string{unit: "[Service]\nExecStart=/usr/bin/kubelet\n", flags: "old"} {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			h := hostWith(t, inventory{Facts: protocol.Facts{KubeletVersion: "v1.33.1"}}, protocol.Spec{})
			h.RunDir = dir
			h.Systemd = host.Systemd{Run: fakeUnits{
				"kubelet.service": "FragmentPath=" + unit + "\nDropInPaths=\n", "/usr/bin/kubelet": "Kubernetes " + test.version + "\n",
			}}
			change, err := h.files().Plan(flags, []byte("old"), []byte("new"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(flags, []byte(test.now), 0o600); err != nil {
				t.Fatal(err)
			}
			err = h.sameKubelet(t.Context(), []host.Change{change})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}
