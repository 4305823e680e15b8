package adopt

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// layerDir makes a directory with every kind of file, deeper than paths can be.
func layerDir(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(os.Mkdir(at("opaque"), 0o711))
	do(unix.Setxattr(at("opaque"), "trusted.overlay.opaque", []byte("y"), 0))
	do(unix.Setxattr(at("opaque"), "user.note", []byte("kept"), 0))
	do(os.WriteFile(at("opaque/file"), []byte("content"), 0o600))
	do(os.Lchown(at("opaque/file"), 1_000_000_007, 3_000_000_001))
	do(unix.Chmod(at("opaque/file"), 0o6755))
	do(os.Link(at("opaque/file"), at("another-name")))
	do(unix.Setxattr(at("opaque/file"), "security.capability", append([]byte{1, 0, 0, 2, 0, 4}, make([]byte, 14)...), 0))
	do(unix.Mknod(at("whiteout"), unix.S_IFCHR, 0))
	do(unix.Mknod(at("loop"), unix.S_IFBLK|0o640, int(unix.Mkdev(7, 1))))
	do(unix.Mknod(at("fifo"), unix.S_IFIFO|0o622, 0))
	do(unix.Mknod(at("socket"), unix.S_IFSOCK|0o755, 0))
	do(os.Symlink("../../../../../etc/passwd", at("link")))
	do(os.Lchown(at("link"), 7, 8))
	do(unix.Lsetxattr(at("link"), "trusted.note", []byte("on a link"), 0))
	sparse, err := os.Create(at("sparse"))
	do(err)
	do(sparse.Truncate(64 << 20))
	_, err = sparse.WriteAt([]byte("in the middle"), 32<<20)
	do(err)
	do(sparse.Close())
	deep, err := openDir(unix.AT_FDCWD, dir)
	do(err)
	for range 30 {
		name := strings.Repeat("d", 240)
		do(unix.Mkdirat(fd(deep), name, 0o750))
		next, err := openDir(fd(deep), name)
		do(err)
		_ = deep.Close()
		deep = next
	}
	do(unix.Mknodat(fd(deep), "file", unix.S_IFREG|0o644, 0))
	_ = deep.Close()
	for _, name := range []string{"opaque/file", "sparse", "link", "fifo", "opaque"} {
		do(unix.UtimesNanoAt(unix.AT_FDCWD, at(name), []unix.Timespec{{Sec: 5}, {Sec: 1234567890, Nsec: 123456789}}, unix.AT_SYMLINK_NOFOLLOW))
	}
	do(unix.Chmod(dir, 0o1751))
	return dir
}

// mirrorThere does what Adopt does with one layer.
func mirrorThere(t *testing.T, from, to string, copies bool) error {
	t.Helper()
	if copies {
		return mirror(t.Context(), directly, from, to, true)
	}
	v, err := openView(from, to)
	if err != nil {
		return err
	}
	defer v.close()
	return mirror(t.Context(), v.open, from, to, false)
}

func TestMirror(t *testing.T) {
	from := layerDir(t)
	want := agenttest.Describe(t, from)
	for _, copies := range []bool{false, true} {
		to := t.TempDir()
		if err := mirrorThere(t, from, to, copies); err != nil {
			t.Fatal(err)
		}
		agenttest.Same(t, agenttest.Describe(t, to), want)
		agenttest.Same(t, agenttest.Describe(t, from), want)
		var file, other, sparse, source unix.Stat_t
		for path, stat := range map[string]*unix.Stat_t{
			to + "/opaque/file": &file, to + "/another-name": &other, to + "/sparse": &sparse, from + "/opaque/file": &source,
		} {
			if err := unix.Lstat(path, stat); err != nil {
				t.Fatal(err)
			}
		}
		if file.Ino != other.Ino || (file.Ino == source.Ino) == copies {
			t.Errorf("copies %v: inodes %d and %d, from %d", copies, file.Ino, other.Ino, source.Ino)
		}
		if sparse.Blocks > 1000 {
			t.Errorf("copies %v: the sparse file takes %d blocks", copies, sparse.Blocks)
		}
	}
}

func TestMirrorOfWhatOtherLayersAreNeededFor(t *testing.T) {
	for _, attribute := range []string{"trusted.overlay.redirect", "trusted.overlay.metacopy", "user.overlay.opaque"} {
		for _, name := range []string{"opaque", "opaque/file"} {
			for _, copies := range []bool{false, true} {
				from := layerDir(t)
				if err := unix.Setxattr(filepath.Join(from, name), attribute, []byte("y"), 0); err != nil {
					t.Fatal(err)
				}
				if err := mirrorThere(t, from, t.TempDir(), copies); !errors.Is(err, ErrUnsuitable) {
					t.Errorf("%s on %s, copies %v: %v", attribute, name, copies, err)
				}
			}
		}
	}
}

func TestMirrorOnAnotherFileSystem(t *testing.T) {
	from := layerDir(t)
	to, err := os.MkdirTemp("/dev/shm", "adopt-")
	if err != nil {
		t.Skipf("no second file system: %v", err)
	}
	defer func() { _ = os.RemoveAll(to) }()
	if err := mirrorThere(t, from, to, false); !errors.Is(err, unix.EXDEV) {
		t.Errorf("hard links to another file system: %v", err)
	}
}

func TestMirrorOfManyFiles(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for n := range 100_000 {
		if err := os.WriteFile(filepath.Join(from, "file-"+strconv.Itoa(n)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := mirrorThere(t, from, to, false); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(to); err != nil || len(entries) != 100_000 {
		t.Errorf("%d files arrived (%v)", len(entries), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := mirror(ctx, directly, from, t.TempDir(), false); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
