package steps

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
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
			h := nodetest.HostWith(t, facts.Found{Facts: protocol.Facts{DockerRoot: test.root}}, protocol.Spec{})
			h.Systemd = host.Systemd{Run: units, Dir: t.TempDir()}
			err := dockerThere(t.Context(), h, []host.UnitState{{Name: "docker.socket"}, {Name: "docker.service"}})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
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
			h := nodetest.HostWith(t, facts.Found{Facts: protocol.Facts{KubeletVersion: "v1.33.1"}}, protocol.Spec{})
			h.RunDir = dir
			h.Systemd = host.Systemd{Run: fakeUnits{
				"kubelet.service": "FragmentPath=" + unit + "\nDropInPaths=\n", "/usr/bin/kubelet": "Kubernetes " + test.version + "\n",
			}}
			change, err := backups(h).Plan(flags, []byte("old"), []byte("new"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(flags, []byte(test.now), 0o600); err != nil {
				t.Fatal(err)
			}
			err = sameKubelet(t.Context(), h, []host.Change{change})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}
