package containerd_test

import (
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

var cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})

func TestRegistries(t *testing.T) {
	const head = "# Written by kubectl-runtime from Docker's configuration.\n"
	type HF = containerd.HostFiles
	for name, c := range map[string]struct {
		mirrors, insecure []string
		docker, have      HF
		want              map[string]string
		warnings          int
	}{
		"nothing": {want: map[string]string{}},
		"mirrors in order": {
			mirrors: []string{"https://b.example/", "http://a.example:5000"},
			want: map[string]string{"docker.io/hosts.toml": head + `server = "https://registry-1.docker.io"

[host."https://b.example"]
  capabilities = ["pull", "resolve"]

[host."http://a.example:5000"]
  capabilities = ["pull", "resolve"]
`},
		},
		"insecure": {
			insecure: []string{"r:5000"},
			want: map[string]string{"r:5000/hosts.toml": head + `server = "http://r:5000"

[host."https://r:5000"]
  capabilities = ["pull", "resolve", "push"]
  skip_verify = true
`},
		},
		"insecure mirror with a client certificate": {
			mirrors: []string{"https://m:1"}, insecure: []string{"m:1"}, docker: HF{"m:1": {"ca.crt": cert, "c.cert": cert, "c.key": cert}},
			want: map[string]string{
				"docker.io/hosts.toml": head + `server = "https://registry-1.docker.io"

[host."https://m:1"]
  capabilities = ["pull", "resolve"]
  skip_verify = true
  ca = ["/d/m:1/ca.crt"]
  client = [["/d/m:1/c.cert", "/d/m:1/c.key"]]
`,
				"m:1/hosts.toml": head + `server = "http://m:1"

[host."https://m:1"]
  capabilities = ["pull", "resolve", "push"]
  skip_verify = true
  ca = ["/d/m:1/ca.crt"]
  client = [["/d/m:1/c.cert", "/d/m:1/c.key"]]
`,
				"m:1/ca.crt": string(cert), "m:1/c.cert": string(cert), "m:1/c.key": string(cert),
			},
		},
		"private CA": {
			docker: HF{"r": {"ca.crt": cert, "notes.txt": []byte("x")}},
			want: map[string]string{
				"r/hosts.toml": head + "server = \"https://r\"\nca = [\"/d/r/ca.crt\"]\n", "r/ca.crt": string(cert),
			},
		},
		"not a certificate": {
			docker:   HF{"r": {"ca.crt": []byte("junk")}},
			want:     map[string]string{"r/hosts.toml": head + "server = \"https://r\"\n"},
			warnings: 1,
		},
		"a certificate without its key": {
			docker: HF{"r": {"c.cert": cert}},
			want:   map[string]string{"r/hosts.toml": head + "server = \"https://r\"\n", "r/c.cert": string(cert)},
		},
		"the admin has a file": {
			insecure: []string{"r:5000"}, mirrors: []string{"https://m"},
			have:     HF{"r_5000_": {"hosts.toml": []byte("x")}, "docker.io": {"hosts.toml": []byte("y")}},
			want:     map[string]string{},
			warnings: 2,
		},
		"the same certificates are there": {docker: HF{"r": {"ca.crt": cert}}, have: HF{"r": {"ca.crt": cert}}, want: map[string]string{}},
		"other certificates are there": {
			docker: HF{"r": {"ca.crt": cert}}, have: HF{"r": {"ca.crt": []byte("other")}}, want: map[string]string{}, warnings: 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			files, warnings := containerd.Registries("/d", c.mirrors, c.insecure, c.docker, c.have)
			got := map[string]string{}
			for _, f := range files {
				got[strings.TrimPrefix(f.Path, "/d/")] = string(f.Data)
				if private := strings.HasSuffix(f.Path, ".key"); private != (f.Mode == 0o600) {
					t.Errorf("%s has mode %o", f.Path, f.Mode)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if len(warnings) != c.warnings {
				t.Errorf("warnings %q, want %d", warnings, c.warnings)
			}
		})
	}
}

func TestDropIn(t *testing.T) {
	if got := containerd.DropIn(nil); got != nil {
		t.Errorf("got %q for nothing", got)
	}
	want := "# Written by kubectl-runtime from Docker's configuration.\n[Service]\nEnvironment=\"HTTP_PROXY=http://u:p%%40\\\"\\\\@h\"\n"
	if diff := cmp.Diff(want, string(containerd.DropIn([]string{`HTTP_PROXY=http://u:p%40"\@h`}))); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// The script has to hand on its own arguments and the configured ones, whatever bytes they hold.
func TestWrapper(t *testing.T) {
	script := filepath.Join(t.TempDir(), "w")
	if err := os.WriteFile(script, containerd.Wrapper("printf", []string{"[%s]", "it's", "$x y"}), 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(script, "a b", "").Output()
	if err != nil || string(out) != "[it's][$x y][a b][]" {
		t.Errorf("got %q, %v", out, err)
	}
}

// Docker's settings on top of every kind of file that admins have, taken by real daemons.
func TestTryTakesDockersSettings(t *testing.T) {
	files, err := filepath.Glob("testdata/*.in.toml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test files: %v", err)
	}
	carried := map[string]containerd.Settings{
		"runtimes": {DefaultRuntime: "wrapped", Runtimes: []containerd.Runtime{
			{Name: "wrapped", Binary: "/etc/containerd/kubectl-runtime/wrapped"},
			{Name: "kata", Type: "io.containerd.kata.v2", Options: map[string]any{"ConfigPath": "/etc/kata.toml"}},
		}},
		"daemon":  {MaxConcurrentDownloads: 7, LogLevel: "debug"},
		"selinux": {EnableSELinux: true},
		"network": {UnprivilegedNetwork: true},
		"nvidia":  {DefaultRuntime: "nvidia", Runtimes: []containerd.Runtime{{Name: "nvidia", Binary: "/usr/bin/nvidia-container-runtime"}}},
	}
	for _, release := range agenttest.Releases(t) {
		for _, file := range files {
			base := strings.TrimSuffix(filepath.Base(file), ".in.toml")
			existing, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for name, s := range carried {
				t.Run(release.Name+"/"+base+"/"+name, func(t *testing.T) {
					if release.Name == "1.6" && base == "imports" {
						t.Skip("before 2.0 imports are merged by Render")
					}
					s.CgroupDriver, s.SandboxImage, s.CNIBinDirs, s.Snapshotter = "cgroupfs", "pause:1", "/opt/cni/bin", noOverlay
					s.Root = filepath.Join(t.TempDir(), "containerd")
					config, err := containerd.Render(existing, s)
					if err != nil {
						t.Fatal(err)
					}
					again, err := containerd.Render(config, s)
					if err != nil || string(again) != string(config) {
						t.Fatalf("not stable (%v):\n%s", err, again)
					}
					for _, r := range s.Runtimes {
						if !strings.Contains(string(config), "default_runtime_name = '"+s.DefaultRuntime+"'") || !strings.Contains(string(config), r.Binary) {
							t.Errorf("runtime %s is not there:\n%s", r.Name, config)
						}
					}
					if err := containerd.Try(t.Context(), release.Binary, containerd.DefaultConfigPath, config); err != nil {
						t.Fatalf("%v\n%s", err, config)
					}
				})
			}
		}
	}
}

// containerd 2.2 and later have this list by default, and then read neither directory.
func TestRenderTakesDockersDirectoryOffTheList(t *testing.T) {
	config := "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n"
	got, err := containerd.Render([]byte(config), settings)
	if err != nil || !strings.Contains(string(got), "config_path = '/etc/containerd/certs.d'\n") {
		t.Errorf("got %s, %v", got, err)
	}
	layout, err := containerd.ReadLayout([]byte(config))
	if err != nil || layout.RegistryDir != "/etc/containerd/certs.d" {
		t.Errorf("layout %+v, %v", layout, err)
	}
}
