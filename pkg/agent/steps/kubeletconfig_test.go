package steps

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

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
