package containerd_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// noOverlay lets tests run on machines whose temporary directory takes no overlay.
const noOverlay = "native"

func TestTryTakesWhatRenderWrites(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		files, err := filepath.Glob("testdata/*.in.toml")
		if err != nil || len(files) == 0 {
			t.Fatalf("no test files: %v", err)
		}
		for _, file := range files {
			name := strings.TrimSuffix(filepath.Base(file), ".in.toml")
			t.Run(release.Name+"/"+name, func(t *testing.T) {
				existing, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				root := filepath.Join(t.TempDir(), "containerd")
				config, err := containerd.Render(existing, containerd.Settings{
					CgroupDriver: "systemd", SandboxImage: "pause:1", CNIBinDirs: "/opt/cni/bin", CNIConfDir: "/etc/cni/net.d",
					Root: root, Snapshotter: noOverlay, Release: versionOf(t, release),
				})
				if err != nil {
					t.Fatal(err)
				}
				if err := containerd.Try(t.Context(), release.Binary, containerd.DefaultConfigPath, config); err != nil {
					t.Fatal(err)
				}
				assertNothingLeft(t, root)
			})
		}
	}
}

func TestTryReportsTheDaemonsOwnError(t *testing.T) {
	cases := map[string]struct{ config, want string }{
		"short ID under version 2": {"version = 2\ndisabled_plugins = [\"cri\"]\n", "invalid disabled plugin URI"},
		"CRI disabled":             {"version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n", "CRI plugin did not load"},
		"mirrors and config_path": {`version = 2
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://mirror.example"]
`, "`mirrors` cannot be set when `config_path` is provided"},
		"no such default runtime": {"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"frob\"\n", "frob"},
	}
	for _, release := range agenttest.Releases(t) {
		for name, c := range cases {
			t.Run(release.Name+"/"+name, func(t *testing.T) {
				root := filepath.Join(t.TempDir(), "containerd")
				config := strings.Replace(c.config, "version = 2\n", "version = 2\nroot = \""+root+"\"\n", 1)
				err := containerd.Try(t.Context(), release.Binary, containerd.DefaultConfigPath, []byte(config))
				var tryErr *containerd.TryError
				if !errors.As(err, &tryErr) || !strings.Contains(err.Error()+tryErr.Detail(), c.want) || strings.Contains(err.Error(), "\n") {
					t.Fatalf("got %v, want a TryError with %q", err, c.want)
				}
				assertNothingLeft(t, root)
			})
		}
	}
}

// A live daemon's sockets, named by the config and by a file it imports, are still there after a try.
func TestTryKeepsOffTheLiveDaemon(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "live-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			for _, name := range []string{"c.sock", "c.sock.ttrpc", "t.sock", "d.sock"} {
				listener, err := net.Listen("unix", filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = listener.Close() }()
			}
			metrics, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = metrics.Close() }()
			imported := filepath.Join(dir, "drop-in.toml")
			write(t, imported, "version = 2\nroot = \""+dir+"/root\"\n[ttrpc]\naddress = \""+dir+"/t.sock\"\n[debug]\naddress = \""+dir+"/d.sock\"\n")
			config, err := containerd.Render([]byte("version = 2\nimports = [\""+dir+"/*.toml\"]\n[grpc]\naddress = \""+dir+"/c.sock\"\n"+
				"[metrics]\naddress = \""+metrics.Addr().String()+"\"\n"), containerd.Settings{Root: filepath.Join(dir, "root"), Snapshotter: noOverlay})
			if err != nil {
				t.Fatal(err)
			}
			before := listing(t, dir)
			if err := containerd.Try(t.Context(), release.Binary, containerd.DefaultConfigPath, config); err != nil {
				t.Fatal(err)
			}
			if after := listing(t, dir); after != before {
				t.Errorf("the live daemon's directory changed\nfrom %s\nto   %s", before, after)
			}
		})
	}
}

// listing tells names and inodes: a socket that was replaced has another inode.
func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, entry.Name()+" "+info.ModTime().String()+" "+info.Mode().String())
	}
	return strings.Join(out, ", ")
}

func assertNothingLeft(t *testing.T, root string) {
	t.Helper()
	base := filepath.Dir(root)
	for _, dir := range []string{base, os.TempDir()} {
		left, _ := filepath.Glob(filepath.Join(dir, ".kubectl-runtime-try-*"))
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if _, err := os.Stat(root); err == nil {
		t.Errorf("%s was made: that is the live daemon's", root)
	}
	if mounts := agenttest.Mounts(base); len(mounts) > 0 {
		t.Errorf("left mounted: %v", mounts)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
