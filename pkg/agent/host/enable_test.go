package host

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestEnsureEnabled: systemd reads its files again only where the unit would start in another way than it knows.
func TestEnsureEnabled(t *testing.T) {
	const file = "/etc/systemd/system/u.service"
	for _, test := range []struct {
		name           string
		link, fresh    bool
		unknown, reads bool
	}{
		{name: "enabled", link: true, fresh: true},
		{name: "not enabled", fresh: true},
		{name: "another text", link: true, reads: true},
		{name: "removed a moment ago", link: true, fresh: true, unknown: true, reads: true},
	} {
		fake := &fakeSystemctl{fresh: test.fresh, units: map[string]*UnitState{"u.service": {Load: "loaded"}}}
		if test.unknown {
			fake.units["u.service"].Load = "not-found"
		}
		s := Systemd{Run: fake, Dir: t.TempDir()}
		link := filepath.Join(s.Dir, "multi-user.target.wants", "u.service")
		if test.link {
			if err := errors.Join(os.Mkdir(filepath.Dir(link), 0o755), os.Symlink(file, link)); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := EnsureEnabled(t.Context(), s, "u.service", file); err != nil {
				t.Fatal(err)
			}
		}
		if got := slices.Contains(fake.calls, "systemctl daemon-reload"); got != test.reads {
			t.Errorf("%s: %q", test.name, fake.calls)
		}
		if target, err := os.Readlink(link); err != nil || target != file {
			t.Errorf("%s: the link leads to %q: %v", test.name, target, err)
		}
	}
}
