package images_test

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images/adopt"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// spoilBase gives Docker's directory of the image's base layer what no archive holds: a socket, and a file with a hole.
func spoilBase(t *testing.T, e *agenttest.Engine, id string) {
	t.Helper()
	store, err := adopt.Open(e.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	image, err := store.Image(id)
	if err != nil {
		t.Fatal(err)
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := store.Dir(image.Layers[0])
	socket, zeros := filepath.Join(dir, "socket"), filepath.Join(dir, "zeros")
	do(unix.Mknod(socket, unix.S_IFSOCK|0o751, 0))
	do(os.Lchown(socket, 70_002, 3_000_000_002))
	do(unix.UtimesNanoAt(unix.AT_FDCWD, socket, []unix.Timespec{{Sec: 5}, {Sec: 1234567890, Nsec: 123456789}}, unix.AT_SYMLINK_NOFOLLOW))
	var stat unix.Stat_t
	do(unix.Stat(zeros, &stat))
	f, err := os.OpenFile(zeros, os.O_RDWR, 0)
	do(err)
	defer func() { _ = f.Close() }()
	do(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, stat.Size))
	do(unix.UtimesNanoAt(unix.AT_FDCWD, zeros, []unix.Timespec{stat.Atim, stat.Mtim}, 0))
}

// TestAdoptedWhatNoArchiveHolds compares containers' files where Docker's layer has a socket, which an import leaves out, and a sparse file,
// which an import fills, by hard links and by copies.
func TestAdoptedWhatNoArchiveHolds(t *testing.T) {
	engine := agenttest.StartEngineOn(t, "overlay2")
	spoilBase(t, engine, load(t, engine, []string{"odd:1"}, oddLayers(t)))
	d, err := docker.Dial(engine.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	const name = "docker.io/library/odd:1"
	const socket = "mode 140751 owner 70002:3000000002 device 0 time 1234567890.123456789"
	for _, release := range agenttest.Releases(t) {
		imported := startOverlay(t, release)
		if _, err := images.Import(t.Context(), d, imported.client, []string{"odd:1"}, nil); err != nil {
			t.Fatal(err)
		}
		want := rootfs(t, imported, name)
		for way, tmp := range map[string]string{"links": "", "copies": "/dev/shm"} {
			t.Run(release.Name+"/"+way, func(t *testing.T) {
				if tmp != "" {
					t.Setenv("TMPDIR", tmp)
				}
				adopted := startOverlay(t, release)
				adoptAll(t, adopted, d, engine.Root, "odd:1")
				got := rootfs(t, adopted, name)
				if got["/socket"] != socket {
					t.Errorf("the socket is %q, want %q", got["/socket"], socket)
				}
				delete(got, "/socket")
				agenttest.Same(t, got, want)
				var stat unix.Stat_t
				mounted(t, adopted, name, func(dir string) {
					if err := unix.Stat(filepath.Join(dir, "zeros"), &stat); err != nil {
						t.Fatal(err)
					}
				})
				if stat.Size != 1<<20 || stat.Blocks > 16 {
					t.Errorf("the sparse file has %d bytes in %d blocks", stat.Size, stat.Blocks)
				}
			})
		}
	}
}

// fileCount files are enough for directories of several blocks; ten times as many take minutes with the race detector.
const fileCount = 10_000

// TestAdoptedManyFiles compares containers' files of an image with a layer of very many files, most of them in one directory.
func TestAdoptedManyFiles(t *testing.T) {
	engine := agenttest.StartEngineOn(t, "overlay2")
	headers := []*tar.Header{{Typeflag: tar.TypeDir, Name: "many/", Mode: 0o755}}
	for n := range fileCount {
		if n%500 == 0 {
			headers = append(headers, &tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%d/", n/500), Mode: 0o700, Uid: n})
		}
		name := fmt.Sprintf("many/%d", n)
		if n%4 == 0 {
			name = fmt.Sprintf("d%d/%d", n/500, n)
		}
		headers = append(headers, &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(0o600 + n%0o200), Size: int64(n % 3), Uid: n, Gid: 2 * n})
	}
	load(t, engine, []string{"many:1"}, [][]byte{layerOf(t, headers)})
	d, err := docker.Dial(engine.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	const name = "docker.io/library/many:1"
	// To import takes so long that one containerd does it for all.
	imported := startOverlay(t, agenttest.Releases(t)[0])
	if _, err := images.Import(t.Context(), d, imported.client, []string{"many:1"}, nil); err != nil {
		t.Fatal(err)
	}
	want := rootfs(t, imported, name)
	if len(want) < fileCount {
		t.Errorf("only %d files to compare", len(want))
	}
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			adopted := startOverlay(t, release)
			adoptAll(t, adopted, d, engine.Root, "many:1")
			agenttest.Same(t, rootfs(t, adopted, name), want)
			if n := links(t, adopted, name, "many/1"); n < 2 {
				t.Errorf("a file has %d links: it was not adopted", n)
			}
		})
	}
}
