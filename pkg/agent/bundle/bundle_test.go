package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

type entry struct {
	name, content string
	kind          byte
}

// archive writes an archive and returns its path.
func archive(t *testing.T, compress bool, entries ...entry) string {
	t.Helper()
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	for _, e := range entries {
		kind := e.kind
		if kind == 0 {
			kind = tar.TypeReg
		}
		size := int64(len(e.content))
		if kind != tar.TypeReg {
			size = 0
		}
		if err := w.WriteHeader(&tar.Header{Name: e.name, Typeflag: kind, Size: size, Mode: 0o755, Linkname: e.content}); err != nil {
			t.Fatal(err)
		}
		if size > 0 {
			if _, err := w.Write([]byte(e.content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out := data.Bytes()
	if compress {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, _ = z.Write(out)
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		out = packed.Bytes()
	}
	path := filepath.Join(t.TempDir(), "containerd.tar.gz")
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// upstream is the layout of containerd's releases.
var upstream = []entry{
	{"bin/", "", tar.TypeDir},
	{"bin/containerd", "daemon", 0},
	{"bin/containerd-shim-runc-v2", "shim", 0},
	{"bin/ctr", "ctr", 0},
	{"bin/containerd-stress", "no", 0},
}

func TestUnpack(t *testing.T) {
	for _, test := range []struct {
		name     string
		compress bool
		entries  []entry
		want     string
	}{
		{"upstream", true, upstream, "containerd containerd-shim-runc-v2 ctr"},
		{"not compressed", false, upstream, "containerd containerd-shim-runc-v2 ctr"},
		{"with CNI and runc", true, []entry{
			{"usr/local/bin/containerd", "daemon", 0}, {"usr/local/bin/containerd-shim-runc-v2", "shim", 0}, {"usr/local/sbin/runc", "runc", 0}, {"opt/cni/bin/bridge", "x", 0},
		}, "containerd containerd-shim-runc-v2 runc"},
		{"names that lead out", true, append([]entry{{"../../../tmp/ctr", "ctr", 0}, {"/etc/passwd", "x", 0}}, upstream[:3]...), "containerd containerd-shim-runc-v2 ctr"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := archive(t, test.compress, test.entries...)
			a, err := Read(file, Want{})
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(t.TempDir(), "opt", "containerd-1")
			for range 2 { // it can be repeated
				if err := Unpack(file, a.SHA256, dir); err != nil {
					t.Fatal(err)
				}
			}
			if got := list(t, dir); got != test.want {
				t.Errorf("unpacked %s", got)
			}
			info, err := os.Stat(filepath.Join(dir, "bin/containerd"))
			if err != nil || info.Mode() != 0o755 {
				t.Errorf("%v %v", info.Mode(), err)
			}
			if err := Remove(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Dir(dir)); err == nil {
				t.Error("the empty folder above is left")
			}
		})
	}
}

// TestReadOnce: the containerd that is run to learn its version is of the very bytes whose digest was checked, and is there for a good archive alone.
func TestReadOnce(t *testing.T) {
	file := archive(t, true, upstream...)
	a, err := Read(file, Want{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".sha256", []byte(a.SHA256), 0o600); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "containerd")
	if _, err := Read(file, Want{SHA256: a.SHA256, Containerd: to}); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(to); string(data) != "daemon" {
		t.Errorf("%q, %v", data, err)
	}
	if err := os.Remove(to); err != nil {
		t.Fatal(err)
	}
	// Somebody who can write the archive can write the sum beside it, too.
	evil := archive(t, true, append([]entry{{"bin/containerd", "evil", 0}}, upstream[2:]...)...)
	b, err := Read(evil, Want{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(evil+".sha256", []byte(b.SHA256), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]Want{evil: {SHA256: a.SHA256, Containerd: to}, archive(t, true, upstream[1]): {Containerd: to}} {
		if _, err := Read(name, want); err == nil {
			t.Errorf("%+v: no error", want)
		}
		if _, err := os.Stat(to); err == nil {
			t.Errorf("%+v: its containerd is there", want)
		}
	}
	if _, err := Read(evil, Want{SHA256: a.SHA256}); err == nil || !strings.Contains(err.Error(), "--containerd-archive-sha256 is "+a.SHA256) {
		t.Errorf("%v", err)
	}
}

func list(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "bin"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestReadRefuses(t *testing.T) {
	good := archive(t, true, upstream...)
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	file := func(content []byte) string {
		path := filepath.Join(t.TempDir(), "a.tar.gz")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, test := range map[string]struct{ path, want string }{
		"no file":        {filepath.Join(t.TempDir(), "none"), "no such file"},
		"a folder":       {t.TempDir(), "not a file"},
		"empty":          {file(nil), "does not hold containerd"},
		"cut off":        {file(data[:len(data)/2]), "unexpected EOF"},
		"no archive":     {file([]byte(strings.Repeat("hello ", 200))), "tar"},
		"without a shim": {archive(t, true, upstream[:2]...), "does not hold containerd-shim-runc-v2"},
		"a link for it":  {archive(t, true, upstream[1], entry{"bin/containerd-shim-runc-v2", "/bin/sh", tar.TypeSymlink}), "does not hold containerd-shim-runc-v2"},
		"twice":          {archive(t, true, append(upstream, entry{"usr/bin/ctr", "other", 0})...), "ctr twice"},
	} {
		if _, err := Read(test.path, Want{}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestChecksum(t *testing.T) {
	for suffix, content := range map[string]string{".sha256": "%s", ".sha256sum": "%s  containerd.tar.gz\n"} {
		file := archive(t, true, upstream...)
		a, err := Read(file, Want{})
		if err != nil {
			t.Fatal(err)
		}
		for sum, ok := range map[string]bool{a.SHA256: true, strings.ToUpper(a.SHA256): true, strings.Repeat("0", 64): false, "": false} {
			if err := os.WriteFile(file+suffix, []byte(strings.ReplaceAll(content, "%s", sum)), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Read(file, Want{}); (err == nil) != ok {
				t.Errorf("%s with %q: %v", suffix, sum, err)
			}
		}
	}
}

// TestUnpackChanged: an archive that was replaced after it was judged is not unpacked, and leaves nothing.
func TestUnpackChanged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "containerd-1")
	if err := Unpack(archive(t, true, upstream...), strings.Repeat("0", 64), dir); err == nil {
		t.Error("no error")
	}
	if entries, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}

// TestCopyAfterKill: what a process left that died in the middle is made again.
func TestCopyAfterKill(t *testing.T) {
	from := t.TempDir()
	for _, name := range []string{"containerd", Shim} {
		if err := os.WriteFile(filepath.Join(from, name), []byte(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "containerd-1")
	if err := os.MkdirAll(dir+partial+"/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+partial+"/bin/containerd", []byte("half"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Copy([]string{filepath.Join(from, "containerd"), filepath.Join(from, Shim)}, dir); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "bin/containerd")); err != nil || string(data) != "containerd" {
		t.Errorf("%s %v", data, err)
	}
	if got := list(t, dir); got != "containerd "+Shim {
		t.Error(got)
	}
}

// TestLabel: programs from elsewhere get the label of Docker's own, without which they would run outside its domain.
func TestLabel(t *testing.T) {
	dir := t.TempDir()
	docker, program := filepath.Join(dir, "dockerd"), filepath.Join(dir, "bin", "containerd")
	if err := os.Mkdir(filepath.Dir(program), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{docker, program} {
		if err := os.WriteFile(path, nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if label := LabelOf(filepath.Join(dir, "none")); label != "" {
		t.Errorf("what is not there has label %q", label)
	}
	const label = "system_u:object_r:container_runtime_exec_t:s0\x00"
	if err := unix.Lsetxattr(docker, selinux, []byte(label), 0); err != nil {
		t.Skipf("SKIPPED: labels cannot be set here: %v", err)
	}
	if err := Label(dir, LabelOf(docker)); err != nil {
		t.Fatal(err)
	}
	if got := LabelOf(program); got != label {
		t.Errorf("%q", got)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "a")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = Read(path, Want{})
	})
}
