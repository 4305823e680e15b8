package containerd_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

var update = flag.Bool("update", false, "write the golden files again")

var settings = containerd.Settings{
	CgroupDriver: "systemd", SandboxImage: "registry.k8s.io/pause:3.9", CNIBinDirs: "/opt/cni/bin", CNIConfDir: "/etc/cni/net.d",
}

func TestRenderGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.in.toml")
	if err != nil || len(files) < 8 {
		t.Fatalf("found %d test files: %v", len(files), err)
	}
	for _, file := range files {
		for suffix, release := range map[string]string{"": "1.6.20", ".v3": "2.0.7", ".v4": "2.4.2"} {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".in.toml")+"/"+release, func(t *testing.T) {
				existing, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				s := settings
				s.Release = parseRelease(t, release)
				got, err := containerd.Render(existing, s)
				if err != nil {
					t.Fatal(err)
				}
				golden := strings.Replace(file, ".in.toml", suffix+".golden.toml", 1)
				if *update {
					if err := os.WriteFile(golden, got, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), string(got)); diff != "" {
					t.Errorf("-want +got\n%s", diff)
				}
				again, err := containerd.Render(got, s)
				if err != nil || !bytes.Equal(again, got) {
					t.Errorf("rendering the output again changes it (%v):\n%s", err, cmp.Diff(string(got), string(again)))
				}
			})
		}
	}
}

func parseRelease(t *testing.T, text string) version.Version {
	t.Helper()
	release, err := containerd.ParseVersion("containerd x " + text)
	if err != nil {
		t.Fatal(err)
	}
	return release
}

// Before 2.0 an imported file with a CRI table replaces the main file's, so it is merged in.
func TestRenderMergesImported(t *testing.T) {
	existing := []byte("version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\ndisabled_plugins = [\"io.containerd.snapshotter.v1.zfs\"]\n")
	s := settings
	s.Imported = []containerd.Imported{{Path: "/etc/containerd/conf.d/99-nvidia.toml", Data: []byte(`version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs"]
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "nvidia"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
BinaryName = "/usr/bin/nvidia-container-runtime"
`)}}
	got, err := containerd.Render(existing, s)
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Imports         []string
		DisabledPlugins []string `toml:"disabled_plugins"`
		Plugins         map[string]struct {
			Containerd struct {
				DefaultRuntimeName string `toml:"default_runtime_name"`
				Runtimes           map[string]struct {
					Options struct {
						BinaryName    string
						SystemdCgroup bool
					}
				}
			}
		}
	}
	if err := toml.Unmarshal(got, &config); err != nil {
		t.Fatal(err)
	}
	cri := config.Plugins["io.containerd.grpc.v1.cri"].Containerd
	if len(config.Imports) != 0 || cri.DefaultRuntimeName != "nvidia" || !cri.Runtimes["runc"].Options.SystemdCgroup ||
		!cri.Runtimes["nvidia"].Options.SystemdCgroup || cri.Runtimes["nvidia"].Options.BinaryName != "/usr/bin/nvidia-container-runtime" {
		t.Errorf("not merged:\n%s", got)
	}
	if diff := cmp.Diff([]string{"io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.btrfs"}, config.DisabledPlugins); diff != "" {
		t.Errorf("disabled plugins -want +got\n%s", diff)
	}
}

func TestRenderRefusesWhatItCannotKeep(t *testing.T) {
	for key, existing := range map[string]string{
		"version":                         "version = 5\n",
		"plugins":                         "version = 2\nplugins = 3\n",
		"registry.config_path":            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/a:/b\"\n",
		"containerd.default_runtime_name": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"gone\"\n",
		"disabled_plugins":                "version = 2\ndisabled_plugins = \"cri\"\n",
	} {
		_, err := containerd.Render([]byte(existing), settings)
		var cannot *containerd.CannotKeepError
		if !errors.As(err, &cannot) || cannot.Key != key {
			t.Errorf("%s: got %v, want a CannotKeepError for it", key, err)
		}
	}
	if _, err := containerd.Render([]byte("version = 2\n  [plugins\n"), settings); err == nil || !strings.Contains(err.Error(), "line 2, column ") {
		t.Errorf("no TOML: got %v", err)
	}
	s := settings
	s.CNIBinDirs = ""
	_, err := containerd.Render([]byte("version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".cni]\nbin_dirs = [\"/a\", \"/b\"]\n"), s)
	var cannot *containerd.CannotKeepError
	if !errors.As(err, &cannot) || cannot.Key != "cni.bin_dirs" {
		t.Errorf("two plugin directories: got %v", err)
	}
	if _, err := containerd.Render(nil, containerd.Settings{CgroupDriver: "cgroupsfs"}); err == nil {
		t.Error("a misspelt cgroup driver is taken")
	}
}

func TestRenderTurnsOOMScoreRestrictionOnOnly(t *testing.T) {
	on := []byte("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nrestrict_oom_score_adj = true\n")
	for _, c := range []struct {
		existing []byte
		set      bool
		want     bool
	}{{nil, false, false}, {nil, true, true}, {on, false, true}} {
		s := settings
		s.RestrictOOMScoreAdj = c.set
		got, err := containerd.Render(c.existing, s)
		if err != nil {
			t.Fatal(err)
		}
		if is := bytes.Contains(got, []byte("restrict_oom_score_adj = true")); is != c.want {
			t.Errorf("existing %q, set %v: got %v", c.existing, c.set, is)
		}
	}
}

// TestRenderUnprivilegedNetwork: `containerd config default` of 1.x says false, which nobody decided.
func TestRenderUnprivilegedNetwork(t *testing.T) {
	stated := []byte("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nenable_unprivileged_ports = false\n")
	for _, c := range []struct {
		existing    []byte
		set         bool
		ports, icmp bool
	}{{nil, false, false, false}, {nil, true, true, true}, {stated, true, true, true}, {stated, false, false, false}} {
		s := settings
		s.UnprivilegedNetwork = c.set
		got, err := containerd.Render(c.existing, s)
		if err != nil {
			t.Fatal(err)
		}
		ports, icmp := bytes.Contains(got, []byte("enable_unprivileged_ports = true")), bytes.Contains(got, []byte("enable_unprivileged_icmp = true"))
		if ports != c.ports || icmp != c.icmp {
			t.Errorf("existing %q, set %v: ports %v, icmp %v", c.existing, c.set, ports, icmp)
		}
	}
}

func TestRenderSandboxAuth(t *testing.T) {
	const own = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"r:5000\".auth]\nauth = \"own\"\n"
	for existing, want := range map[string]string{"": "\nauth = 'secret'\n", own: "\nauth = 'own'\n"} {
		s := settings
		s.SandboxImage, s.SandboxAuth = "r:5000/pause:1", "secret"
		got, err := containerd.Render([]byte(existing), s)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(got, []byte("configs.'r:5000'.auth]"+want)) || !bytes.Contains(got, []byte("config_path = ")) {
			t.Errorf("got\n%s", got)
		}
	}
}

func TestReadLayout(t *testing.T) {
	got, err := containerd.ReadLayout([]byte("version = 4\nroot = \"/data/c\"\n[plugins.\"io.containerd.server.v1.grpc\"]\naddress = \"/x.sock\"\n" +
		"[plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = \"native\"\n[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"pause:1\"\n"))
	want := containerd.Layout{Root: "/data/c", Address: "/x.sock", Snapshotter: "native", SandboxImage: "pause:1", CNIBinDir: "/opt/cni/bin", CNIConfDir: "/etc/cni/net.d", RegistryDir: "/etc/containerd/certs.d", NamesSnapshotter: true}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	got, err = containerd.ReadLayout(nil)
	want = containerd.Layout{Root: "/var/lib/containerd", Address: "/run/containerd/containerd.sock", Snapshotter: "overlayfs", CNIBinDir: "/opt/cni/bin", CNIConfDir: "/etc/cni/net.d", RegistryDir: "/etc/containerd/certs.d"}
	if err != nil || got != want {
		t.Errorf("empty: got %+v, %v, want %+v", got, err, want)
	}
}

func TestParseVersion(t *testing.T) {
	for line, want := range map[string]version.Version{
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n":                         {Major: 1, Minor: 6, Patch: 20, Text: "1.6.20~ds1"},
		"containerd containerd.io 1.7.24 88bf19b2105c8b17560993bee28a01ddc2f97182\n":                            {Major: 1, Minor: 7, Patch: 24, Text: "1.7.24"},
		"containerd github.com/containerd/containerd/v2 v2.4.2 \n":                                              {Major: 2, Minor: 4, Patch: 2, Text: "2.4.2"},
		"containerd github.com/containerd/containerd/v2 2.0.0-rc.1 x\n":                                         {Major: 2, Minor: 0, Patch: 0, Text: "2.0.0-rc.1"},
		"containerd github.com/containerd/containerd/v2 2.4.2+unknown":                                          {Major: 2, Minor: 4, Patch: 2, Text: "2.4.2+unknown"},
		"containerd github.com/k3s-io/containerd v1.7.21-k3s2 472731909fa34bd7bc9c087e4c27943f9835f111":         {Major: 1, Minor: 7, Patch: 21, Text: "1.7.21-k3s2"},
		"containerd github.com/containerd/containerd v1.2.13.m.1 7ad184331fa3e55e52b890ea95e65ba581ae3429 more": {Major: 1, Minor: 2, Patch: 13, Text: "1.2.13.m.1"},
	} {
		if got, err := containerd.ParseVersion(line); err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{"", "containerd", "containerd x", "containerd x y z", "docker x 1.2.3", "containerd x 1"} {
		if got, err := containerd.ParseVersion(line); err == nil {
			t.Errorf("%q: got %+v, want an error", line, got)
		}
	}
}

// What Render accepts has to be TOML of the release's version that Render leaves alone, whatever the file was.
func FuzzRender(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.in.toml")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, existing []byte) {
		for _, release := range []version.Version{{Major: 1, Minor: 6}, {Major: 2}, {Major: 2, Minor: 4}} {
			s := settings
			s.Release = release
			got, err := containerd.Render(existing, s)
			if err != nil {
				continue
			}
			var config map[string]any
			if err := toml.Unmarshal(got, &config); err != nil || config["version"] != containerd.ConfigVersion(release) {
				t.Fatalf("%+v: not a file of its version (%v):\n%s", release, err, got)
			}
			again, err := containerd.Render(got, s)
			if err != nil || !bytes.Equal(again, got) {
				t.Fatalf("%+v: not stable (%v):\n%s\nthen\n%s", release, err, got, again)
			}
		}
	})
}
