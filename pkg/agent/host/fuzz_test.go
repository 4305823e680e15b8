package host

import (
	"path/filepath"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

func TestOddUnits(t *testing.T) {
	agenttest.TryOddFiles(t, func(data []byte) { _ = installLinks(string(data), "x.service") })
}

// FuzzInstallLinks: whatever a unit's file holds, its links are in folders of systemd's own directory.
func FuzzInstallLinks(f *testing.F) {
	for _, seed := range []string{"[Install]\nWantedBy=multi-user.target\nAlso=x\n", "\ufeff[Install]\nRequiredBy = a b\\\n c\n", "[Install]\nWantedBy=../../x /y\x00 .\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, link := range installLinks(text, "x.service") {
			if dir := filepath.Dir(filepath.Join("/d", link)); filepath.Dir(dir) != "/d" {
				t.Fatalf("%q makes a link in %s", text, dir)
			}
		}
	})
}
