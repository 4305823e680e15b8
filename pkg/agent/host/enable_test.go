package host

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestEnsureEnabled: systemctl enable, which has systemd read all its files, is left out only where nothing is left for it to do.
func TestEnsureEnabled(t *testing.T) {
	for _, test := range []struct {
		name                 string
		link, fresh, unknown bool
		enables              bool
	}{
		{name: "enabled", link: true, fresh: true},
		{name: "not enabled", fresh: true, enables: true},
		{name: "another text", link: true, enables: true},
		{name: "removed a moment ago", link: true, fresh: true, unknown: true, enables: true},
	} {
		fake := &fakeSystemctl{fresh: test.fresh, units: map[string]*UnitState{"u.service": {Load: "loaded", File: "enabled"}}}
		if test.unknown {
			fake.units["u.service"].Load = "not-found"
		}
		s := Systemd{Run: fake, Dir: t.TempDir()}
		link := filepath.Join(s.Dir, "multi-user.target.wants", "u.service")
		if err := os.Mkdir(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if test.link {
			if err := os.Symlink("/etc/systemd/system/u.service", link); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.EnsureEnabled(context.Background(), "u.service"); err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(fake.calls, "systemctl enable --quiet -- u.service"); got != test.enables {
			t.Errorf("%s: %q", test.name, fake.calls)
		}
	}
}
