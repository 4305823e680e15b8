package desired

import (
	"encoding/pem"
	"errors"
	"flag"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var update = flag.Bool("update", false, "write the golden files again")

// Each daemon.json on top of each config.toml that admins have: 44 layouts, the outputs in testdata/carry. Package containerd's
// tests have real daemons take the like.
func TestDockersSettingsInContainerdsConfig(t *testing.T) {
	daemons := map[string]string{
		"nvidia":  `{"default-runtime": "nvidia", "runtimes": {"nvidia": {"path": "nvidia-container-runtime", "runtimeArgs": []}}, "exec-opts": ["native.cgroupdriver=systemd"]}`,
		"wrapper": `{"default-runtime": "w", "runtimes": {"w": {"path": "/opt/w", "runtimeArgs": ["--x", "1"]}, "kata": {"runtimeType": "io.containerd.kata.v2"}}}`,
		"daemon":  `{"debug": true, "max-concurrent-downloads": 10, "selinux-enabled": true, "storage-driver": "vfs"}`,
		"plain":   `{"registry-mirrors": ["https://m"], "log-opts": {"max-size": "10m"}, "storage-driver": "overlay2", "default-runtime": "runc"}`,
	}
	configs, err := filepath.Glob("../containerd/testdata/*.in.toml")
	if err != nil || len(configs)*len(daemons) < 40 {
		t.Fatalf("only %d configs: %v", len(configs), err)
	}
	for _, name := range slices.Sorted(maps.Keys(daemons)) {
		docker, _, err := translate.Docker(translate.Input{File: name, Data: []byte(daemons[name])})
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range configs {
			base := strings.TrimSuffix(filepath.Base(path), ".in.toml")
			t.Run(name+"/"+base, func(t *testing.T) {
				old, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				found := facts.Found{
					Facts:  protocol.Facts{CgroupDriver: "systemd", SandboxImage: "pause:1", ContainerdVersion: "2.4.2"},
					Docker: docker, CNIBinDir: "/opt/cni/bin", CNIConfDir: "/etc/cni/net.d",
				}
				settings, err := containerdSettings(found, old, nil)
				if err != nil {
					t.Fatal(err)
				}
				got, err := containerd.Render(old, settings)
				if err != nil {
					t.Fatal(err)
				}
				golden := filepath.Join("testdata/carry", name+"-"+base+".toml")
				if *update {
					if err := errors.Join(os.MkdirAll(filepath.Dir(golden), 0o755), os.WriteFile(golden, got, 0o644)); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), string(got)); diff != "" {
					t.Errorf("-want +got (go test -update writes it again)\n%s", diff)
				}
			})
		}
	}
}

func TestUnprivilegedNetwork(t *testing.T) {
	for _, test := range []struct {
		docker, kernel string
		want           bool
	}{
		{"20.10.24+dfsg1", "6.1.0-18-amd64", true},
		{"29.1.3", "4.18.0-553.el8_10.x86_64", true},
		{"20.10.7", "4.11.0", true},
		{"19.03.15", "5.4.0-100-generic", false},
		{"20.10.24", "3.10.0-1160.el7.x86_64", false},
		{"", "6.1.0", false},
		{"24.0.7", "", false},
	} {
		if got := unprivilegedNetwork(test.docker, test.kernel); got != test.want {
			t.Errorf("Docker %s on Linux %s: %t", test.docker, test.kernel, got)
		}
	}
}

func TestProxyEnvironment(t *testing.T) {
	cni := t.TempDir()
	kubeconfig := "clusters:\n- cluster:\n    server: \"https://10.96.0.1:443\"\n"
	if err := os.WriteFile(filepath.Join(cni, "calico-kubeconfig"), []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	environmentFile := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(environmentFile, []byte("https_proxy=x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		proxy   translate.Proxy
		systemd string
		want    []string
	}{
		"none":            {proxy: translate.Proxy{No: "x"}},
		"Docker's":        {proxy: translate.Proxy{HTTPS: "http://p", No: "a,b"}, systemd: "Environment=A=b", want: []string{"HTTPS_PROXY=http://p", "NO_PROXY=a,b,10.96.0.1,.svc,.cluster.local"}},
		"containerd's":    {proxy: translate.Proxy{HTTP: "http://p"}, systemd: "Environment=http_proxy=http://q"},
		"in another file": {proxy: translate.Proxy{HTTP: "http://p"}, systemd: "EnvironmentFiles=" + environmentFile + " (ignore_errors=yes)"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &node.Host{Systemd: host.Systemd{Run: nodetest.Answers(c.systemd + "\n")}}
			got, err := proxyEnvironment(t.Context(), h, facts.Found{CNIConfDir: cni, Docker: translate.Settings{Proxy: c.proxy}})
			// This machine's own kubelet.conf, if it has one, adds its server.
			if err != nil || (len(c.want) == 0) != (len(got) == 0) || len(got) > 0 && host.Absent("/etc/kubernetes/kubelet.conf") && !slices.Equal(got, c.want) {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

// What is made for a registry goes again, with the directories that were made for it.
func TestCarriedFilesAreUndone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc/containerd/certs.d")
	block := pem.EncodeToMemory(&pem.Block{Type: "X", Bytes: []byte("x")})
	list, _ := containerd.Registries(dir, []string{"https://m"}, []string{"r:5000"}, containerd.HostFiles{"r:5000": {"c.cert": block, "c.key": block}}, nil)
	files := host.Files{Dir: t.TempDir()}
	var changes []host.Change
	for _, f := range list {
		change, err := files.Plan(f.Path, nil, f.Data)
		if err != nil {
			t.Fatal(err)
		}
		change.NewMode = f.Mode
		if err := files.Apply(change); err != nil {
			t.Fatal(err)
		}
		if !IsCarried(change.Path) {
			t.Errorf("%s is taken for containerd's config", change.Path)
		}
		changes = append(changes, change)
	}
	info, err := os.Stat(filepath.Join(dir, "r:5000/c.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	read, err := readHosts(dir)
	if err != nil || len(read["r:5000"]) != 3 || len(read["docker.io"]) != 1 {
		t.Errorf("read back %v, %v", read, err)
	}
	for _, change := range slices.Backward(changes) {
		if _, err := files.Undo(change); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Dir(filepath.Dir(dir))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directories are left: %v", err)
	}
}
