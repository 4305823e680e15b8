package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

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
	return startWith(t, release, "", containerd.Settings{})
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
