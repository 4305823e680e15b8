package e2e

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// repository is an apt repository on the lab's bridge.
type repository struct {
	// source is the line for sources.list.
	source string
	dir    string
}

// serve makes a repository of packages. It ends with the test.
func serve(t *testing.T, debs ...string) *repository {
	t.Helper()
	r := &repository{dir: t.TempDir()}
	var index strings.Builder
	for _, deb := range debs {
		data, err := os.ReadFile(deb)
		if err != nil {
			t.Fatal(err)
		}
		control, err := exec.CommandContext(t.Context(), "dpkg-deb", "--field", deb).Output()
		if err != nil {
			t.Fatalf("read %s: %v", deb, err)
		}
		sum := sha256.Sum256(data)
		name := strings.ReplaceAll(filepath.Base(deb), "%", "_") // no name that an URL would have to quote
		fmt.Fprintf(&index, "%sFilename: ./%s\nSize: %d\nSHA256: %s\n\n", control, name, len(data), hex.EncodeToString(sum[:]))
		if err := os.WriteFile(filepath.Join(r.dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(r.dir, "Packages"), []byte(index.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "10.88.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(r.dir)), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	r.source = fmt.Sprintf("deb [trusted=yes] http://%s ./", listener.Addr())
	return r
}

// use makes the repository a node's only source of packages.
func (c *cluster) use(t *testing.T, node string, r *repository) {
	t.Helper()
	c.exec(t, node, "echo '"+r.source+"' > /etc/apt/sources.list && apt-get -q update")
}

// debs are packages of Debian's archive, by name as apt takes them: NAME/SUITE. They are fetched once and kept beside the lab's Debian
// systems, which come from there, too.
func debs(t *testing.T, names ...string) map[string]string {
	t.Helper()
	base := os.Getenv("KUBECTL_RUNTIME_CACHE")
	if base == "" {
		home, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		base = filepath.Join(home, "kubectl-runtime")
	}
	found := map[string]string{}
	for _, name := range names {
		dir := filepath.Join(base, "rootfs", "debs", strings.ReplaceAll(name, "/", "_"))
		have, err := filepath.Glob(filepath.Join(dir, "*.deb"))
		if err != nil {
			t.Fatal(err)
		}
		if len(have) == 0 {
			fetch(t, dir, name)
			if have, err = filepath.Glob(filepath.Join(dir, "*.deb")); err != nil || len(have) == 0 {
				t.Fatalf("fetch %s: apt-get brought nothing (%v)", name, err)
			}
		}
		found[name] = have[0]
	}
	return found
}

// debianArchive is where this machine's apt has Debian's packages from.
func debianArchive(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		t.Fatalf("find Debian's archive: %v", err)
	}
	for uri := range strings.FieldsSeq(string(out)) {
		if strings.HasSuffix(strings.TrimSuffix(uri, "/"), "/debian") {
			return uri
		}
	}
	t.Skip("SKIPPED: this machine's apt has no archive of Debian's")
	return ""
}

// fetch has apt-get download a package with lists of its own, whatever this machine's suite is.
func fetch(t *testing.T, dir, name string) {
	t.Helper()
	apt := t.TempDir()
	temp := filepath.Join(apt, "debs")
	archive := debianArchive(t)
	sources := "deb " + archive + " bullseye main\ndeb " + archive + " bookworm main\n"
	for _, path := range []string{temp, filepath.Join(apt, "lists/partial"), filepath.Join(apt, "cache/archives/partial")} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(apt, "sources.list"), []byte(sources), 0o644); err != nil {
		t.Fatal(err)
	}
	options := []string{
		"-q", "-o", "Dir::Etc::SourceList=" + apt + "/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null", "-o", "Dir::State::Lists=" + apt + "/lists",
		"-o", "Dir::Cache=" + apt + "/cache", "-o", "APT::Sandbox::User=root", "-o", "APT::Update::Error-Mode=any",
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	for _, args := range [][]string{{"update"}, {"download", name}} {
		cmd := exec.CommandContext(ctx, "apt-get", append(options, args...)...)
		cmd.Dir = temp
		if out, err := cmd.CombinedOutput(); err != nil {
			if args[0] == "update" && len(out) > 0 {
				t.Skipf("SKIPPED: Debian's archive cannot be reached, and %s is not in the cache\n%s", name, out)
			}
			t.Fatalf("apt-get %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, dir); err != nil {
		t.Fatal(err)
	}
}

// release packs the lab's newest containerd as upstream releases it, with the checksum beside it.
func release(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "../lab/build/build.sh", "--path", "containerd").Output()
	if err != nil {
		t.Fatalf("find the lab's containerd: %v", err)
	}
	path := filepath.Join(t.TempDir(), "containerd-2.4.2-linux.tar.gz")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.New()
	packed, err := gzip.NewWriterLevel(io.MultiWriter(file, hash), gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(packed)
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), name))
		if err != nil {
			t.Fatal(err)
		}
		if err := archive.WriteHeader(&tar.Header{Name: "bin/" + name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, end := range []func() error{archive.Close, packed.Close, file.Close} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
	}
	sum := hex.EncodeToString(hash.Sum(nil)) + "  " + filepath.Base(path) + "\n"
	if err := os.WriteFile(path+".sha256sum", []byte(sum), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
