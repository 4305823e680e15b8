package images_test

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images/adopt"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// fallback is something that keeps a layer from being linked.
type fallback struct {
	name string
	// spoil changes what Docker has of the image's base layer.
	spoil func(t *testing.T, dir string)
	// tmp is where containerd's directory is made, if not where all are.
	tmp    string
	driver string
	// streamed: the image comes by `docker save`; else its layers were copied.
	streamed bool
}

func setAttribute(file, name, value string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := unix.Lsetxattr(filepath.Join(dir, file), name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// maxLinks gives a file as many names as it can have.
func maxLinks(t *testing.T, dir string) {
	file := filepath.Join(dir, "capable")
	elsewhere := filepath.Join(dir, "../../links") // of the same mount: links cannot leave it
	if err := os.Mkdir(elsewhere, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(elsewhere) })
	for n := range 100_000 {
		err := os.Link(file, filepath.Join(elsewhere, strconv.Itoa(n)))
		if errors.Is(err, unix.EMLINK) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Skip("this file system has no limit of links that can be tried")
}

const immutableFlag = 0x10 // FS_IMMUTABLE_FL of linux/fs.h

// immutable sets what `chattr +i` does.
func immutable(t *testing.T, dir string) {
	f, err := os.Open(filepath.Join(dir, "capable"))
	if err != nil {
		t.Fatal(err)
	}
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		t.Skipf("no file attributes here: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|immutableFlag)); err != nil {
		t.Skipf("no immutable files here: %v", err)
	}
	t.Cleanup(func() {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags))
		_ = f.Close()
	})
}

func fallbacks() []fallback {
	return []fallback{
		{name: "metacopy", spoil: setAttribute("capable", "trusted.overlay.metacopy", ""), streamed: true},
		{name: "redirect", spoil: setAttribute("etc", "trusted.overlay.redirect", "/other"), streamed: true},
		{name: "a rootless Docker's whiteout", spoil: setAttribute("etc", "user.overlay.opaque", "y"), streamed: true},
		{name: "no cache-id", spoil: func(t *testing.T, dir string) {
			ids, err := filepath.Glob(filepath.Join(dir, "../../../image/overlay2/layerdb/sha256/*/cache-id"))
			if err != nil || len(ids) == 0 {
				t.Fatalf("no layers: %v", err)
			}
			for _, id := range ids {
				if data, err := os.ReadFile(id); err != nil || !strings.Contains(dir, string(data)) {
					continue
				}
				data, _ := os.ReadFile(id)
				if err := os.Remove(id); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = os.WriteFile(id, data, 0o600) })
			}
		}, streamed: true},
		{name: "as many links as there can be", spoil: maxLinks},
		{name: "immutable file", spoil: immutable},
		{name: "another file system", tmp: "/dev/shm"},
		{name: "another driver", driver: "vfs", streamed: true},
	}
}

// TestFallbacks brings images that cannot be linked, and compares containers' files with those of the same image as it is streamed.
func TestFallbacks(t *testing.T) {
	for _, f := range fallbacks() {
		for _, release := range agenttest.Releases(t) {
			t.Run(f.name+"/"+release.Name, func(t *testing.T) { testFallback(t, f, release) })
		}
	}
}

func testFallback(t *testing.T, f fallback, release agenttest.Release) {
	driver := "overlay2"
	if f.driver != "" {
		driver = f.driver
	}
	engine := agenttest.StartEngineOn(t, driver)
	id := load(t, engine, []string{"odd:1"}, oddLayers(t))
	d, err := docker.Dial(engine.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	const name = "docker.io/library/odd:1"
	want := func() map[string]string {
		reference := startOverlay(t, release)
		if _, err := images.Import(t.Context(), d, reference.client, []string{"odd:1"}, nil); err != nil {
			t.Fatal(err)
		}
		return rootfs(t, reference, name)
	}()
	docks := engine.Root + "/vfs/dir"
	if f.driver == "" {
		store, err := adopt.Open(engine.Root)
		if err != nil {
			t.Fatal(err)
		}
		image, err := store.Image(id)
		if err != nil {
			t.Fatal(err)
		}
		docks = store.Dir(image.Layers[0])
		if f.spoil != nil {
			f.spoil(t, docks)
		}
	}
	if f.tmp != "" {
		t.Setenv("TMPDIR", f.tmp)
	}
	n := startOverlay(t, release)
	var why error
	before := agenttest.Describe(t, docks)
	_, err = images.Import(t.Context(), d, n.client, []string{"odd:1"}, nil, images.WithDockerRoot(engine.Root), images.WithRun("run"),
		images.WithRoot(images.Space{Dir: engine.Root}), images.WithFallback(func(_ string, err error) { why = err }))
	if err != nil {
		t.Fatal(err)
	}
	agenttest.Same(t, agenttest.Describe(t, docks), before)
	if (why != nil) != f.streamed || why != nil && !errors.Is(why, adopt.ErrUnsuitable) {
		t.Errorf("streamed because of: %v", why)
	}
	agenttest.Same(t, rootfs(t, n, name), want)
	if got := links(t, n, name, "capable"); got != 1 {
		t.Errorf("a file that cannot be linked has %d links", got)
	}
	n.expectCRI(t, "odd:1", true)
	if err := images.Undo(t.Context(), n.client, "run", nil); err != nil {
		t.Fatal(err)
	}
	n.expectNothing(t)
}

// TestVerify finds whatever is not as Docker's digests say.
func TestVerify(t *testing.T) {
	engine := agenttest.StartEngineOn(t, "overlay2")
	layers := append(oddLayers(t), layerOf(t, []*tar.Header{{Typeflag: tar.TypeReg, Name: "setuid", Size: 9, Mode: 0o600}}))
	id := load(t, engine, []string{"odd:1"}, layers)
	load(t, engine, []string{"base:1"}, layers[:1])
	d, err := docker.Dial(engine.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	store, err := adopt.Open(engine.Root)
	if err != nil {
		t.Fatal(err)
	}
	image, err := store.Image(id)
	if err != nil {
		t.Fatal(err)
	}
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n := startOverlay(t, release)
			adoptAll(t, n, d, engine.Root, "odd:1", "base:1")
			verify := func() (int, error) {
				return images.Verify(t.Context(), d, n.client, engine.Root, []string{"odd:1", "base:1", "gone:1"}, func(int64, int64, string) {})
			}
			if count, err := verify(); err != nil || count != 4 {
				t.Errorf("%d layers verified: %v", count, err)
			}
			file := filepath.Join(store.Dir(image.Layers[0]), "etc/passwd") // which containerd's is a link of
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for what, bad := range map[string]string{"another byte": "b" + string(data[1:]), "less": string(data[:10]), "more": string(data) + "x"} {
				if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := verify(); err == nil || !strings.Contains(err.Error(), string(image.Layers[0].DiffID)) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := verify(); err != nil {
				t.Errorf("as it was: %v", err)
			}
			if err := images.Undo(t.Context(), n.client, "run", nil); err != nil {
				t.Fatal(err)
			}
			n.expectNothing(t)
		})
	}
}
