package desired

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// TestContainerdComesUp: containerd is given a link where nothing that starts at boot wants it, once Docker does not.
func TestContainerdComesUp(t *testing.T) {
	unit := filepath.Join(t.TempDir(), node.ContainerdUnit)
	for _, test := range []struct {
		name, install, state, by string
		want                     string
	}{
		{"enabled", "", "enabled", "multi-user.target", ""},
		{"by the kubelet", "", "static", "docker.service kubelet.service", ""},
		{"by Docker alone", "", "static", "docker.service", "multi-user.target.wants"},
		{"until the next boot", "[Install]\nWantedBy=x.target\n", "enabled-runtime", "x.target", "x.target.wants"},
		{"disabled", "[Install]\nWantedBy=x.target\n", "disabled", "", "x.target.wants"},
	} {
		if err := os.WriteFile(unit, []byte(test.install), 0o600); err != nil {
			t.Fatal(err)
		}
		h := &node.Host{Systemd: host.Systemd{Dir: "/d", Run: nodetest.Says{node.ContainerdUnit: "WantedBy=" + test.by + "\nRequiredBy=\nFragmentPath=" + unit + "\n"}}}
		want := map[string]string{}
		if test.want != "" {
			want["/d/"+test.want+"/"+node.ContainerdUnit] = unit
		}
		if links, err := BootLinks(t.Context(), h, host.UnitState{File: test.state}); err != nil || !maps.Equal(links, want) {
			t.Errorf("%s: %v, %v", test.name, links, err)
		}
	}
}

func TestBootLinks(t *testing.T) {
	unit := filepath.Join(t.TempDir(), "x.service")
	if err := os.WriteFile(unit, []byte("[Unit]\nWantedBy=no.target\n[Install]\n# WantedBy=no.target\nWantedBy=a.target b.target\nRequiredBy = c.target\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := host.Systemd{Dir: "/d", Run: nodetest.Says{"x.service": "FragmentPath=" + unit + "\n", "gone.service": "FragmentPath=\n"}}
	links, err := s.BootLinks(t.Context(), "x.service")
	var got []string
	for _, file := range Links(links, false) {
		got = append(got, file.Path)
		if string(file.New) != unit || file.Old != nil {
			t.Errorf("%+v", file)
		}
	}
	if want := []string{"/d/a.target.wants/x.service", "/d/b.target.wants/x.service", "/d/c.target.requires/x.service"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	if links, err := s.BootLinks(t.Context(), "gone.service"); err != nil || len(links) != 0 {
		t.Errorf("%v, %v", links, err)
	}
}
