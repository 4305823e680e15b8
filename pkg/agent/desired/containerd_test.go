package desired

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// containerdWith is what was found on a host whose containerd is binary, with files in the place of /etc/containerd; DIR in them is its path.
func containerdWith(t *testing.T, binary string, files map[string]string) (*node.Host, facts.Found) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	h := &node.Host{Runner: host.Exec{}, Systemd: host.Systemd{Run: nodetest.Answers("\n")}}
	version, err := containerd.Version(t.Context(), binary, h.Runner.Run)
	if err != nil {
		t.Fatal(err)
	}
	return h, facts.Found{
		Facts:            protocol.Facts{CgroupDriver: "systemd", SandboxImage: "pause:1", ContainerdVersion: version.String()},
		ContainerdBinary: binary, ContainerdConfig: filepath.Join(dir, "config.toml"), ContainerdAddress: containerd.DefaultAddress,
		CNIBinDir: "/opt/cni/bin", CNIConfDir: "/etc/cni/net.d",
		Docker: translate.Settings{Mirrors: []string{"https://mirror.local"}, Insecure: []string{"reg.local:5000"}},
	}
}

// What Docker's configuration says of registries goes where the very containerd that will run looks, also where an imported file, or one
// that it imports, says so.
func TestRegistriesGoWhereContainerdLooks(t *testing.T) {
	for _, release := range agenttest.ConfigReleases(t) {
		for name, files := range map[string]map[string]string{
			"drop-in": {
				"config.toml":          "version = 2\nimports = [\"conf.d/*.toml\"]\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/main.d\"\n",
				"conf.d/registry.toml": "version = 2\nroot = \"DIR/root\"\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"DIR/hosts.d\"\n",
			},
			"nested": {
				"config.toml": "version = 2\nimports = [\"a.toml\"]\n",
				"a.toml":      "version = 2\nimports = [\"b.toml\"]\n",
				"b.toml":      "version = 2\nroot = \"DIR/root\"\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"DIR/hosts.d\"\n",
			},
			"of another version": {
				"config.toml": "version = 2\nimports = [\"a.toml\"]\n",
				"a.toml":      "version = 3\nroot = \"DIR/root\"\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"DIR/hosts.d\"\n",
			},
		} {
			t.Run(release.Name+"/"+name, func(t *testing.T) {
				h, found := containerdWith(t, release.Binary, files)
				dir := filepath.Dir(found.ContainerdConfig)
				config, err := Containerd(t.Context(), h, found)
				if err != nil {
					t.Fatal(err)
				}
				if config.Layout.Root != dir+"/root" {
					t.Errorf("root %s", config.Layout.Root)
				}
				carried, warnings, err := CarriedFiles(t.Context(), h, found, config)
				if err != nil || len(warnings) > 0 {
					t.Fatal(err, warnings)
				}
				if len(carried) < 2 {
					t.Errorf("%d files are carried over", len(carried))
				}
				for _, file := range carried {
					if !strings.HasPrefix(file.Path, dir+"/hosts.d/") {
						t.Errorf("%s is not where containerd looks\n%s", file.Path, config.text)
					}
				}
			})
		}
	}
}

// A service that runs containerd with --root and --address keeps its data and its socket there, whatever the config says.
func TestFlagsOfContainerdCount(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		h, found := containerdWith(t, release.Binary, map[string]string{"config.toml": "version = 2\nroot = \"/a\"\n"})
		found.ContainerdRoot = "/b"
		config, err := Containerd(t.Context(), h, found)
		if err != nil || config.Layout.Root != "/b" {
			t.Errorf("containerd %s: %s, %v", release.Name, config.Layout.Root, err)
		}
	}
}

// What is yet to be installed cannot be asked: a drop-in is taken into account all the same.
func TestConfigOfContainerdToBeInstalled(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		h, found := containerdWith(t, release.Binary, map[string]string{
			"config.toml": "imports = [\"a.toml\"]\n", "a.toml": "version = 2\nroot = \"/a\"\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/h\"\n",
		})
		found.Install = &facts.Installation{}
		for _, binary := range []string{"/opt/not/there/containerd", release.Binary} {
			found.ContainerdBinary = binary
			config, err := Containerd(t.Context(), h, found)
			if err != nil || config.Layout.Root != "/a" || config.Layout.RegistryDir != "/h" {
				t.Errorf("containerd %s, %s: %+v, %v", release.Name, binary, config.Layout, err)
			}
		}
	}
}
