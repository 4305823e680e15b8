package containerd_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

func versionOf(t *testing.T, release agenttest.Release) version.Version {
	t.Helper()
	version, err := containerd.Version(t.Context(), release.Binary, host.Exec{}.Run)
	if err != nil {
		t.Fatal(err)
	}
	return version
}

// TestConfigVersion: what ConfigVersion says is what the release itself writes.
func TestConfigVersion(t *testing.T) {
	for _, release := range agenttest.ConfigReleases(t) {
		out, err := host.Exec{}.Run(t.Context(), release.Binary, "config", "default")
		if err != nil {
			t.Fatal(err)
		}
		var config struct{ Version int64 }
		if err := toml.Unmarshal([]byte(out), &config); err != nil {
			t.Fatal(err)
		}
		if got := containerd.ConfigVersion(versionOf(t, release)); got != config.Version {
			t.Errorf("containerd %s: version %d, it writes %d itself", release.Name, got, config.Version)
		}
	}
}

// The same settings in the two forms that files of CRI have. HANDLER is a program in runc's place.
const (
	nvidiaV2 = `[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
BinaryName = "/usr/bin/nvidia-container-runtime"
`
	nvidiaV3 = `[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia.options]
BinaryName = "/usr/bin/nvidia-container-runtime"
`
	pathV2 = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/hosts.d\"\n"
	pathV3 = "[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/hosts.d\"\n"
)

// TestEffective has real containerds say what they make of what Render writes, beside the files that it imports, and load it.
func TestEffective(t *testing.T) {
	const root = "imports = [\"conf.d/*.toml\"]\n"
	for _, test := range []struct {
		name  string
		files map[string]string
		// refused names, by release, the file and line that are refused, and with what.
		refused map[string]string
		// handler and hostsd tell that a drop-in defines nvidia, and config_path.
		handler, hostsd bool
	}{
		{name: "nothing", files: map[string]string{"config.toml": root}},
		{name: "version 2 throughout", files: map[string]string{
			"config.toml": "version = 2\n" + root, "conf.d/50.toml": "version = 2\n" + pathV2 + nvidiaV2,
		}, handler: true, hostsd: true},
		{name: "version 3 throughout", files: map[string]string{
			"config.toml": "version = 3\n" + root, "conf.d/50.toml": "version = 3\n" + pathV3 + nvidiaV3,
		}, handler: true, hostsd: true},
		{name: "version 2 with a drop-in of version 3", files: map[string]string{
			"config.toml": "version = 2\n" + root, "conf.d/50.toml": "version = 3\n" + pathV3 + nvidiaV3,
		}, handler: true, hostsd: true},
		{name: "version 3 with a drop-in of version 2", files: map[string]string{
			"config.toml": "version = 3\n" + root, "conf.d/50.toml": "version = 2\n" + pathV2 + nvidiaV2,
		}, handler: true, hostsd: true},
		{name: "version 2 with a drop-in of version 4", files: map[string]string{
			"config.toml": "version = 2\n" + root, "conf.d/99-nvidia.toml": "# by nvidia-ctk\nversion = 4\n" + pathV3 + nvidiaV3,
		}, handler: true, hostsd: true, refused: map[string]string{"2.0": "conf.d/99-nvidia.toml:2: version = 4 is newer than containerd 2.0.7 reads"}},
		{name: "drop-ins of versions 2 and 3", files: map[string]string{
			"config.toml": "version = 2\n" + root, "conf.d/50.toml": "version = 2\n" + pathV2, "conf.d/99-nvidia.toml": "version = 3\n" + nvidiaV3,
		}, handler: true, hostsd: true, refused: map[string]string{"2.0": "conf.d/99-nvidia.toml:1: it is of version 3 and DIR/conf.d/50.toml of version 2"}},
		{name: "drop-in without a version", files: map[string]string{
			"config.toml": "version = 2\n" + root, "conf.d/50.toml": pathV2 + nvidiaV2,
		}, handler: true, hostsd: true},
		{name: "drop-in of version 3 without saying so", files: map[string]string{
			"config.toml": root, "conf.d/50.toml": pathV3 + nvidiaV3,
		}, handler: true, hostsd: true, refused: map[string]string{}},
		{name: "Docker's own file", files: map[string]string{
			"config.toml": "disabled_plugins = [\"cri\"]\n" + root, "conf.d/50.toml": "version = 2\n" + nvidiaV2,
		}, handler: true},
		{name: "imports of imports", files: map[string]string{
			"config.toml": "version = 2\n" + root, "conf.d/a.toml": "version = 2\nimports = [\"../deep/b.toml\"]\n", "deep/b.toml": "version = 2\nimports = [\"c-*.toml\", \"../config.toml\"]\n",
			"deep/c-1.toml": "version = 2\n" + nvidiaV2 + pathV2,
		}, handler: true, hostsd: true},
		{name: "CRI disabled by a drop-in", files: map[string]string{
			"config.toml": "version = 2\n" + root, "conf.d/50.toml": "version = 2\ndisabled_plugins = [\"io.containerd.snapshotter.v1.zfs\", \"io.containerd.grpc.v1.cri\"]\n",
		}, refused: map[string]string{"2.0": "conf.d/50.toml:2: it disables the plugin io.containerd.grpc.v1.cri", "2.4": "conf.d/50.toml:2: it disables the plugin io.containerd.grpc.v1.cri"}},
		{name: "another sandbox image in a drop-in", files: map[string]string{
			"config.toml": root, "conf.d/50.toml": "version = 3\n[plugins.\"io.containerd.cri.v1.images\".pinned_images]\n\n  sandbox = \"pause:0\"\n",
		}, refused: map[string]string{"2.0": "conf.d/50.toml:4: plugins.io.containerd.grpc.v1.cri.sandbox_image = \"pause:0\"", "2.4": "conf.d/50.toml:4: plugins.io.containerd.grpc.v1.cri.sandbox_image = \"pause:0\""}},
		{name: "inline mirrors in a drop-in", files: map[string]string{
			"config.toml": root, "conf.d/50.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]\n",
		}, refused: map[string]string{"2.0": "conf.d/50.toml:2: CRI does not load with registry.mirrors", "2.4": "conf.d/50.toml:2: CRI does not load with registry.mirrors"}},
		{name: "a drop-in that contradicts the cgroup driver", files: map[string]string{
			"config.toml": root, "conf.d/50.toml": "version = 2\n" + nvidiaV2 + "SystemdCgroup = false\n",
		}, handler: true, refused: map[string]string{"2.0": "conf.d/50.toml:6: SystemdCgroup = false of the handler nvidia", "2.4": "conf.d/50.toml:6: SystemdCgroup = false of the handler nvidia"}},
	} {
		for _, release := range agenttest.ConfigReleases(t) {
			t.Run(test.name+"/"+release.Name, func(t *testing.T) {
				dir := configDir(t, test.files)
				path := filepath.Join(dir, "config.toml")
				existing, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				s := settings
				s.Release, s.Root, s.Snapshotter = versionOf(t, release), filepath.Join(dir, "root"), noOverlay
				if s.Imported, err = containerd.ReadImports(path, existing); err != nil {
					t.Fatal(err)
				}
				rendered, err := containerd.Render(existing, s)
				var effective containerd.Effective
				if err == nil {
					effective, err = containerd.ReadEffective(t.Context(), release.Binary, path, rendered, host.Exec{}.Run)
				}
				if err == nil {
					err = effective.Check(s)
				}
				if want, refused := test.refused[release.Name]; refused {
					var problem *containerd.ImportError
					if !errors.As(err, &problem) || !strings.HasPrefix(err.Error(), dir+"/"+strings.ReplaceAll(want, "DIR", dir)) || problem.Hint() == "" {
						t.Fatalf("got %v, want %s", err, want)
					}
					return
				}
				if err != nil {
					t.Fatalf("%v\n%s", err, rendered)
				}
				want := "/etc/containerd/certs.d"
				if test.hostsd {
					want = "/etc/containerd/hosts.d"
				}
				if effective.RegistryDir != want || effective.Root != s.Root || effective.Address != "/run/containerd/containerd.sock" {
					t.Errorf("effective layout %+v\n%s", effective.Layout, rendered)
				}
				handlers := effective.Handlers()
				if runc := handlers["runc"]; !runc.SystemdCgroup {
					t.Errorf("runc: %+v", runc)
				}
				if nvidia, ok := handlers["nvidia"]; ok != test.handler || ok && (!nvidia.SystemdCgroup || nvidia.BinaryName != "/usr/bin/nvidia-container-runtime") {
					t.Errorf("nvidia: %t %+v\n%s", ok, nvidia, rendered)
				}
				if err := containerd.Try(t.Context(), release.Binary, path, rendered); err != nil {
					t.Errorf("%v\n%s", err, rendered)
				}
			})
		}
	}
}
