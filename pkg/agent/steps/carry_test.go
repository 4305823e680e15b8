package steps

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
)

func TestChangedSince(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	before := time.Now().Add(-time.Second)
	if changed, err := changedSince(path, before); changed || err != nil {
		t.Errorf("absent: %t %v", changed, err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil { // as cp -a and tar do
		t.Fatal(err)
	}
	for when, want := range map[time.Time]bool{before: true, time.Now().Add(time.Minute): false, {}: false} {
		if changed, err := changedSince(path, when); changed != want || err != nil {
			t.Errorf("since %s: %t %v", when, changed, err)
		}
	}
}

func TestInsecureRegistriesInNetworks(t *testing.T) {
	hosts := desired.RegistriesOf([]string{
		"busybox:1", "library/x@sha256:0", "docker.io/a/b:1", "10.1.0.5:5000/a:1", "10.1.0.5:5000/b@sha256:1", "192.0.2.9/a:1",
		"harbor.corp/a:1", "quay.io/a/b:2", "[fd00::5]:80/a:1", "localhost:5000/a:1",
	})
	got := hostsWithin([]string{"10.0.0.0/8", "172.16.0.0/12", "fd00::/8"}, hosts, func(host string) []netip.Addr {
		return map[string][]netip.Addr{
			"harbor.corp": {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:172.16.9.9")}, "quay.io": {netip.MustParseAddr("192.0.2.2")},
		}[host]
	})
	if want := []string{"10.1.0.5:5000", "[fd00::5]:80", "harbor.corp"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
