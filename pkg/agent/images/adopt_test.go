package images_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

var built = time.Date(2019, 3, 2, 1, 0, 0, 0, time.UTC)

// oddLayers are an image's layers with every kind of file that is easily got wrong.
func oddLayers(t *testing.T) [][]byte {
	t.Helper()
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) // cap_net_bind_service+ep
	long := strings.TrimSuffix(strings.Repeat("a-rather-long-directory-name-"+strings.Repeat("x", 60)+"/", 40), "/")
	dir := func(name string, mode int64) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}
	}
	base := []*tar.Header{
		dir("./", 0o755), dir("etc/", 0o755), dir("tmp/", 0o1777), dir("shared/", 0o2775), dir("covered/", 0o755), dir("dev/", 0o755),
		{Typeflag: tar.TypeReg, Name: "etc/passwd", Size: 1000, Mode: 0o644},
		{Typeflag: tar.TypeReg, Name: "etc/removed", Size: 10, Mode: 0o600},
		{Typeflag: tar.TypeReg, Name: "covered/old", Size: 10, Mode: 0o600},
		{Typeflag: tar.TypeReg, Name: "setuid", Size: 5, Mode: 0o4755, Uid: 3, Gid: 4},
		{Typeflag: tar.TypeReg, Name: "capable", Size: 5, Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability}},
		{Typeflag: tar.TypeReg, Name: "user", Size: 5, Mode: 0o640, Uid: 1_000_000_007, Gid: 3_000_000_001},
		{Typeflag: tar.TypeReg, Name: "empty", Mode: 0},
		{Typeflag: tar.TypeReg, Name: "zeros", Size: 1 << 20, Mode: 0o644},
		{Typeflag: tar.TypeLink, Name: "tmp/also-passwd", Linkname: "etc/passwd"},
		{Typeflag: tar.TypeLink, Name: "dev/setuid-too", Linkname: "setuid"},
		{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "/nowhere/at/all", Mode: 0o777, Uid: 9, Gid: 9},
		{Typeflag: tar.TypeSymlink, Name: "up", Linkname: "../../../../etc", Mode: 0o777},
		{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o620, Uid: 5},
		{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3},
		{Typeflag: tar.TypeBlock, Name: "dev/loop", Mode: 0o660, Devmajor: 7, Devminor: 1, Gid: 6},
		dir("etc/cron.d/", 0o755),
		{Typeflag: tar.TypeReg, Name: "etc/crontab", Size: 40, Mode: 0o644},
		{Typeflag: tar.TypeReg, Name: "etc/cron.d/job", Size: 40, Mode: 0o600, Uid: 70_001},
		{Typeflag: tar.TypeReg, Name: "noted", Size: 3, Mode: 0o600, PAXRecords: map[string]string{"SCHILY.xattr.user.note": "a\x00b"}},
		{Typeflag: tar.TypeDir, Name: "noted-dir/", Mode: 0o1700, Uid: 100_000, PAXRecords: map[string]string{"SCHILY.xattr.user.note": "d"}},
		{Typeflag: tar.TypeReg, Name: "line\nbreak and \u00fc", Size: 3, Mode: 0o644},
	}
	for at, rest := 0, long; at >= 0; {
		if at = strings.Index(rest, "/"); at >= 0 {
			rest = rest[:at] + "\x00" + rest[at+1:]
			base = append(base, dir(strings.ReplaceAll(rest[:at], "\x00", "/")+"/", 0o711))
		}
	}
	base = append(base, &tar.Header{Typeflag: tar.TypeReg, Name: filepath.Dir(long) + "/deep", Size: 4, Mode: 0o644})
	return [][]byte{
		layerOf(t, base),
		layerOf(t, []*tar.Header{
			dir("etc/", 0o750),
			{Typeflag: tar.TypeReg, Name: "etc/.wh.removed", Mode: 0o600},
			dir("covered/", 0o700), dir("tmp/", 0o1777),
			{Typeflag: tar.TypeReg, Name: "covered/.wh..wh..opq", Mode: 0o600},
			{Typeflag: tar.TypeReg, Name: "covered/new", Size: 10, Mode: 0o600, Uid: 70_000},
			{Typeflag: tar.TypeReg, Name: "tmp/.wh.also-passwd", Mode: 0o600},
		}),
		layerOf(t, []*tar.Header{dir("covered/", 0o711), {Typeflag: tar.TypeReg, Name: "covered/third", Size: 1, Mode: 0o644}}),
	}
}

func layerOf(t *testing.T, headers []*tar.Header) []byte {
	t.Helper()
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for n, header := range headers {
		header.ModTime = built.Add(time.Duration(n) * time.Minute)
		header.Format = tar.FormatPAX
		if err := w.WriteHeader(header); err != nil {
			t.Fatalf("%s: %v", header.Name, err)
		}
		data := make([]byte, header.Size)
		if header.Size < 1<<16 {
			for at := range data {
				data[at] = byte('a' + at%7)
			}
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

func sha(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// load gives the engine an image, as `docker load` does, and returns its ID.
func load(t *testing.T, e *agenttest.Engine, tags []string, layers [][]byte) string {
	t.Helper()
	return loadFor(t, e, runtime.GOARCH, tags, layers)
}

// loadFor is load of an image for an architecture.
func loadFor(t *testing.T, e *agenttest.Engine, architecture string, tags []string, layers [][]byte) string {
	t.Helper()
	return loadAll(t, e, architecture, [][]string{tags}, [][][]byte{layers})[0]
}

// loadAll gives the engine images at once, each with its tags and layers.
func loadAll(t *testing.T, e *agenttest.Engine, architecture string, tags [][]string, layers [][][]byte) (ids []string) {
	t.Helper()
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	add := func(name string, data []byte) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	var manifest []any
	for i := range layers {
		var diffIDs, paths []string
		for n, layer := range layers[i] {
			diffIDs, paths = append(diffIDs, "sha256:"+sha(layer)), append(paths, fmt.Sprintf("%d-%d/layer.tar", i, n))
			add(paths[n], layer)
		}
		config, err := json.Marshal(map[string]any{
			"architecture": architecture, "os": "linux", "config": map[string]any{"Entrypoint": []string{"/program", "sleep"}},
			"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
		})
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("config-%d.json", i)
		add(name, config)
		manifest = append(manifest, map[string]any{"Config": name, "RepoTags": tags[i], "Layers": paths})
		ids = append(ids, "sha256:"+sha(config))
	}
	data, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	add("manifest.json", data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, buffer.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	e.Docker("load", "-q", "-i", file)
	return ids
}

// startOverlay is start with the snapshotter that nodes have.
func startOverlay(t *testing.T, release agenttest.Release) node {
	t.Helper()
	return startWith(t, release, "")
}

// startWith is startOverlay with more lines in containerd's config.
func startWith(t *testing.T, release agenttest.Release, more string) node {
	t.Helper()
	config, err := containerd.Render([]byte(agenttest.Isolated+more), containerd.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	daemon := agenttest.Start(t, release, string(config), "")
	c, err := containerd.Dial(daemon.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := cri.Dial(ctx, daemon.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return node{client: c, cri: r, address: daemon.Address, daemon: daemon}
}

// adoptAll imports by adoption and fails the test for what was not adopted.
func adoptAll(t *testing.T, n node, d images.Source, root string, refs ...string) {
	t.Helper()
	never := func(id string, err error) { t.Errorf("%s was not adopted: %v", id, err) }
	_, err := images.Import(t.Context(), d, n.client, refs, nil, images.WithDockerRoot(root), images.WithRun("run"), images.WithFallback(never))
	if err != nil {
		t.Fatal(err)
	}
}

// rootfs describes each file that a container of the image would start with.
func rootfs(t *testing.T, n node, name string) map[string]string {
	t.Helper()
	var files map[string]string
	mounted(t, n, name, func(dir string) { files = agenttest.Describe(t, dir) })
	// The root is the container's own directory, as old as that.
	files["/"], _, _ = strings.Cut(files["/"], " time ")
	return files
}

// mounted mounts what a container of the image would start with.
func mounted(t *testing.T, n node, name string, look func(dir string)) {
	t.Helper()
	mountedIn(t.Context(), t, n, name, look)
}

// mountedIn is mounted in the namespace that ctx names.
func mountedIn(ctx context.Context, t *testing.T, n node, name string, look func(dir string)) {
	t.Helper()
	image, err := n.client.GetImage(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	diffs, err := image.RootFS(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ctx, done, err := n.client.WithLease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()
	service := n.client.SnapshotService("overlayfs")
	mounts, err := service.Prepare(ctx, "look-"+name, identity.ChainID(diffs).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = service.Remove(context.WithoutCancel(ctx), "look-"+name) }()
	dir := t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mount.UnmountAll(dir, unix.MNT_DETACH) }()
	look(dir)
}

// links tells how many names a container sees that a file has.
func links(t *testing.T, n node, name, path string) uint64 {
	t.Helper()
	var stat unix.Stat_t
	mounted(t, n, name, func(dir string) {
		if err := unix.Lstat(filepath.Join(dir, path), &stat); err != nil {
			t.Fatal(err)
		}
	})
	return stat.Nlink
}

// TestAdoptedIsWhatIsImported compares containers' files, for all that an image can hold.
func TestAdoptedIsWhatIsImported(t *testing.T) {
	engine := agenttest.StartEngineOn(t, "overlay2")
	id := load(t, engine, []string{"odd:1", "quay.io/x/odd:2"}, oddLayers(t))
	d, err := docker.Dial(engine.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if adoptable := images.Adoptable(engine.Root, engine.Root, "overlayfs"); adoptable == nil || !adoptable(id) || adoptable("sha256:0") {
		t.Error("what can be adopted is not told")
	}
	if images.Adoptable(engine.Root, "/dev/shm", "overlayfs") != nil || images.Adoptable(engine.Root, engine.Root, "native") != nil {
		t.Error("another file system, or another snapshotter, is said to do")
	}
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			adopted, imported := startOverlay(t, release), startOverlay(t, release)
			before := agenttest.Describe(t, filepath.Join(engine.Root, "overlay2"))
			adoptAll(t, adopted, d, engine.Root, "odd:1")
			agenttest.Same(t, agenttest.Describe(t, filepath.Join(engine.Root, "overlay2")), before)
			if _, err := images.Import(t.Context(), d, imported.client, []string{"odd:1"}, nil); err != nil {
				t.Fatal(err)
			}
			for _, ref := range []string{"odd:1", "quay.io/x/odd:2", id} {
				adopted.expectCRI(t, ref, true)
			}
			got, want := rootfs(t, adopted, "docker.io/library/odd:1"), rootfs(t, imported, "docker.io/library/odd:1")
			if len(want) < 65 {
				t.Errorf("only %d files to compare", len(want))
			}
			agenttest.Same(t, got, want)
			if n := links(t, adopted, "docker.io/library/odd:1", "capable"); n != 2 {
				t.Errorf("a file has %d links: it was not adopted", n)
			}
			for _, table := range []string{"etc/crontab", "etc/cron.d/job"} {
				if n := links(t, adopted, "docker.io/library/odd:1", table); n != 1 {
					t.Errorf("%s has %d links, so that cron does not take it", table, n)
				}
			}
		})
	}
}

// TestAdoptedWithoutDocker removes Docker's data, and undoes.
func TestAdoptedWithoutDocker(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			engine := agenttest.StartEngineOn(t, "overlay2")
			layers := oddLayers(t)
			load(t, engine, []string{"odd:1"}, layers)
			other := load(t, engine, []string{"other:1"}, layers[:1])
			d, err := docker.Dial(engine.Socket)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = d.Close() }()
			n := startOverlay(t, release)
			adoptAll(t, n, d, engine.Root, "odd:1", "other:1")
			adoptAll(t, n, d, engine.Root, "odd:1", "other:1")
			before := rootfs(t, n, "docker.io/library/odd:1")
			engine.Docker("rmi", "odd:1", "other:1")
			if left, err := os.ReadDir(filepath.Join(engine.Root, "image/overlay2/layerdb/sha256")); err != nil || len(left) != 0 {
				t.Errorf("Docker still has %v (%v)", left, err)
			}
			for _, dir := range []string{"overlay2", "image"} {
				if err := os.RemoveAll(filepath.Join(engine.Root, dir)); err != nil {
					t.Fatal(err)
				}
			}
			agenttest.Same(t, rootfs(t, n, "docker.io/library/odd:1"), before)
			// The user gave one image another name since: it stays.
			image, err := n.client.ImageService().Get(t.Context(), "docker.io/library/other:1")
			if err != nil {
				t.Fatal(err)
			}
			image.Name, image.Labels = "docker.io/library/mine:1", nil
			if _, err := n.client.ImageService().Create(t.Context(), image); err != nil {
				t.Fatal(err)
			}
			n.expectCRI(t, other, true)
			if err := images.Undo(t.Context(), n.client, "run", nil); err != nil {
				t.Fatal(err)
			}
			n.expectCRI(t, "odd:1", false)
			if names := n.names(t); !slices.Equal(names, []string{"docker.io/library/mine:1", other}) {
				t.Errorf("left: %v", names)
			}
			if err := images.Remove(t.Context(), n.client, []string{"docker.io/library/mine:1", other}); err != nil {
				t.Fatal(err)
			}
			n.expectNothing(t)
		})
	}
}

func (n node) expectNothing(t *testing.T) {
	t.Helper()
	if names := n.names(t); len(names) != 0 {
		t.Errorf("records left: %v", names)
	}
	if err := n.client.SnapshotService("overlayfs").Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		t.Errorf("snapshot left: %s", info.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	n.expectNoContent(t)
}

// kills is how often TestAdoptionKilled does it, for each containerd.
const kills = 50

// TestAdoptionKilled kills a process that adopts, at any time, and lets another one finish.
func TestAdoptionKilled(t *testing.T) {
	if socket := os.Getenv("ADOPT_DOCKER"); socket != "" {
		adoptInChild(t, socket)
		return
	}
	engine := agenttest.StartEngineOn(t, "overlay2")
	layers := oddLayers(t)
	load(t, engine, []string{"odd:1"}, layers)
	load(t, engine, []string{"other:1"}, layers[:2])
	d, err := docker.Dial(engine.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n := startOverlay(t, release)
			adoptAll(t, n, d, engine.Root, "odd:1", "other:1")
			want := rootfs(t, n, "docker.io/library/odd:1")
			snaps, blobs := n.inventory(t)
			undo := func() {
				t.Helper()
				if err := images.Undo(t.Context(), n.client, "run", nil); err != nil {
					t.Fatal(err)
				}
			}
			undo()
			took := startAdoption(t, engine, n.address).time(t)
			interrupted := 0
			for range kills {
				undo()
				startAdoption(t, engine, n.address).kill(took)
				if left, err := n.client.LeasesService().List(t.Context()); err != nil || len(left) > 0 {
					interrupted++
				}
				adoptAll(t, n, d, engine.Root, "odd:1", "other:1")
				gotSnaps, gotBlobs := n.inventory(t)
				if !slices.Equal(gotSnaps, snaps) || !slices.Equal(gotBlobs, blobs) {
					t.Fatalf("after a kill there are %v and %v, want %v and %v", gotSnaps, gotBlobs, snaps, blobs)
				}
			}
			t.Logf("%d of %d were killed at work", interrupted, kills)
			if interrupted < kills/5 {
				t.Error("too few were killed at work")
			}
			agenttest.Same(t, rootfs(t, n, "docker.io/library/odd:1"), want)
			startAdoption(t, engine, n.address).kill(took)
			undo()
			n.expectNothing(t)
		})
	}
}

func (n node) inventory(t *testing.T) (snaps, blobs []string) {
	t.Helper()
	if err := n.client.SnapshotService("overlayfs").Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		snaps = append(snaps, info.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := n.client.ContentStore().Walk(t.Context(), func(info content.Info) error {
		blobs = append(blobs, info.Digest.String())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(snaps)
	slices.Sort(blobs)
	return snaps, blobs
}

func startAdoption(t *testing.T, engine *agenttest.Engine, address string) child {
	t.Helper()
	return startChild(t, "TestAdoptionKilled", "ADOPT_DOCKER="+engine.Socket, "ADOPT_ROOT="+engine.Root, "ADOPT_CONTAINERD="+address)
}

// child is a process that works as a test of this program, with variables of its own.
type child struct{ cmd *exec.Cmd }

// working is the line that a child prints right before its work.
const working = "the child starts to work"

// startChild returns when the child starts to work, however long its start took.
func startChild(t *testing.T, test string, env ...string) child {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+test+"$")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == working {
			return child{cmd}
		}
	}
	t.Fatalf("the child did not start to work: %v", cmd.Wait())
	return child{}
}

// kill kills the child at a random moment within a time, unless it exits before.
func (c child) kill(within time.Duration) {
	timer := time.AfterFunc(rand.N(within), func() { _ = c.cmd.Process.Kill() })
	_ = c.cmd.Wait()
	timer.Stop()
	time.Sleep(50 * time.Millisecond) // the agent's unit does not restart at once either, and containerd still does what it was asked for
}

// time returns how long the child works, undisturbed.
func (c child) time(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	if err := c.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

func adoptInChild(t *testing.T, socket string) {
	d, err := docker.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	c, err := containerd.Dial(os.Getenv("ADOPT_CONTAINERD"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(working)
	_, err = images.Import(t.Context(), d, c, []string{"odd:1", "other:1"}, nil, images.WithDockerRoot(os.Getenv("ADOPT_ROOT")), images.WithRun("run"))
	if err != nil {
		t.Fatal(err)
	}
}
