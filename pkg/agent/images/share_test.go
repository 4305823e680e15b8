package images_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	coreimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// sharingDocker stands for an engine whose images are in a namespace of the node's containerd.
type sharingDocker struct {
	Images []docker.Image
	// configs are CRI's IDs by Docker's.
	configs map[string]string
	saved   []string
}

func newSharingDocker() *sharingDocker { return &sharingDocker{configs: map[string]string{}} }

func (d *sharingDocker) Image(_ context.Context, ref string) (docker.Image, error) {
	for _, image := range d.Images {
		if ref == image.ID || slices.Contains(slices.Concat(image.RepoTags, image.RepoDigests), ref) {
			return image, nil
		}
	}
	return docker.Image{}, fmt.Errorf("no such image: %s: %w", ref, errdefs.ErrNotFound)
}

func (d *sharingDocker) Save(_ context.Context, ref string) (io.ReadCloser, error) {
	d.saved = append(d.saved, ref)
	return nil, fmt.Errorf("this engine saves nothing: %s", ref)
}

const otherArchitecture = "riscv64"

func inMoby(ctx context.Context) context.Context { return namespaces.WithNamespace(ctx, "moby") }

// pull gives Docker's namespace an image for an architecture, as `docker pull` does: an index that names manifests which are not there,
// compressed layers, snapshots. Without tags it is a dangling one.
func (d *sharingDocker) pull(t *testing.T, n node, architecture string, tags []string, layers [][]byte) docker.Image {
	t.Helper()
	ctx, done, err := n.client.WithLease(inMoby(t.Context()), leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()
	store := n.client.ContentStore()
	write := func(mediaType string, data []byte, labels map[string]string) ocispec.Descriptor {
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		if err := content.WriteBlob(ctx, store, desc.Digest.String(), bytes.NewReader(data), desc, content.WithLabels(labels)); err != nil {
			t.Fatal(err)
		}
		return desc
	}
	object := func(mediaType string, value any) ocispec.Descriptor {
		data, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return write(mediaType, data, nil)
	}
	var manifest ocispec.Manifest
	var diffIDs []digest.Digest
	for _, layer := range layers {
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		_, _ = w.Write(layer)
		_ = w.Close()
		diffIDs = append(diffIDs, digest.FromBytes(layer))
		manifest.Layers = append(manifest.Layers, write(ocispec.MediaTypeImageLayerGzip, packed.Bytes(),
			map[string]string{"containerd.io/distribution.source.quay.io": "x/odd"}))
	}
	platform := ocispec.Platform{OS: "linux", Architecture: architecture}
	manifest.SchemaVersion, manifest.MediaType = 2, ocispec.MediaTypeImageManifest
	manifest.Config = object(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}, Config: ocispec.ImageConfig{Entrypoint: []string{"/program", "sleep"}},
	})
	own := object(ocispec.MediaTypeImageManifest, manifest)
	own.Platform = &platform
	missing := func(os, architecture string) ocispec.Descriptor {
		return ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(own.Digest.String() + os + architecture), Size: 10,
			Platform: &ocispec.Platform{OS: os, Architecture: architecture},
		}
	}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		missing("linux", "s390x"), missing("unknown", "unknown"), own, missing("linux", "arm64"),
	}}
	if architecture != runtime.GOARCH {
		index.Manifests = append(index.Manifests, missing("linux", runtime.GOARCH))
	}
	index.SchemaVersion = 2
	target := object(ocispec.MediaTypeImageIndex, index)
	children := coreimages.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		list, err := coreimages.Children(ctx, store, desc)
		if errdefs.IsNotFound(err) {
			return nil, coreimages.ErrSkipDesc
		}
		return list, err
	})
	if err := coreimages.Walk(ctx, coreimages.SetChildrenLabels(store, children), target); err != nil {
		t.Fatal(err)
	}
	d.configs[target.Digest.String()] = manifest.Config.Digest.String()
	return d.name(ctx, t, n, target, own, tags)
}

// name makes the records of what was pulled, and its snapshots.
func (d *sharingDocker) name(ctx context.Context, t *testing.T, n node, target, own ocispec.Descriptor, tags []string) docker.Image {
	t.Helper()
	image := docker.Image{ID: target.Digest.String(), RepoTags: tags, Platform: "linux/" + own.Platform.Architecture}
	names := []string{"moby-dangling@" + image.ID}
	if len(tags) > 0 {
		names = nil
	}
	for _, tag := range tags {
		name := tag
		if !strings.Contains(tag, "/") {
			name = "docker.io/library/" + tag
		}
		names = append(names, name)
		repository, _, _ := strings.Cut(tag, ":")
		image.RepoDigests = append(image.RepoDigests, repository+"@"+image.ID)
	}
	for _, name := range names {
		if _, err := n.client.ImageService().Create(ctx, coreimages.Image{Name: name, Target: target}); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.NewImage(n.client, coreimages.Image{Name: names[0], Target: own}).Unpack(ctx, "overlayfs"); err != nil {
		t.Fatal(err)
	}
	d.Images = append(d.Images, image)
	return image
}

// state describes all of a namespace, and collects garbage before.
func (n node) state(ctx context.Context, t *testing.T) map[string]string {
	t.Helper()
	if err := images.Remove(t.Context(), n.client, nil); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	list, err := n.client.ImageService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range list {
		all["record "+image.Name] = fmt.Sprint(image.Target, image.Labels, image.UpdatedAt)
	}
	if err := n.client.ContentStore().Walk(ctx, func(info content.Info) error {
		all["blob "+info.Digest.String()] = fmt.Sprint(info)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := n.client.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		all["snapshot "+info.Name] = fmt.Sprint(info)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// blobs describes the files of containerd's content store.
func (n node) blobs(t *testing.T) map[string]string {
	t.Helper()
	return agenttest.Describe(t, filepath.Join(filepath.Dir(n.address), "root/io.containerd.content.v1.content/blobs"))
}

func shareAll(t *testing.T, n node, d *sharingDocker, refs []string, options ...images.Option) {
	t.Helper()
	_, err := images.Import(t.Context(), d, n.client, refs, nil, append([]images.Option{images.WithNamespace("moby"), images.WithRun("run")}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.saved) > 0 {
		t.Errorf("Docker was asked to save %v", d.saved)
	}
}

func never(t *testing.T) images.Option {
	return images.WithFallback(func(id string, err error) { t.Errorf("%s was not linked: %v", id, err) })
}

// TestShared brings images from Docker's namespace, then removes Docker's.
func TestShared(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n, d := startOverlay(t, release), newSharingDocker()
			layers := oddLayers(t)
			odd := d.pull(t, n, runtime.GOARCH, []string{"odd:1", "quay.io/x/odd:2"}, layers)
			dangling := d.pull(t, n, runtime.GOARCH, nil, layers[:1])
			foreign := d.pull(t, n, otherArchitecture, []string{"foreign:1"}, layers[1:])
			shareable, err := images.Shareable(t.Context(), n.client, "moby", "overlayfs")
			if err != nil || !shareable(odd.ID) || !shareable(dangling.ID) || shareable("sha256:0") {
				t.Errorf("what can be shared is not told (%v)", err)
			}
			var want map[string]string
			mountedIn(inMoby(t.Context()), t, n, "docker.io/library/odd:1", func(dir string) { want = agenttest.Describe(t, dir) })
			want["/"], _, _ = strings.Cut(want["/"], " time ")
			moby, blobs := n.state(inMoby(t.Context()), t), n.blobs(t)

			refs := []string{"odd:1", dangling.ID, "foreign:1", "gone:1"}
			shareAll(t, n, d, refs, never(t))
			agenttest.Same(t, n.blobs(t), blobs)
			agenttest.Same(t, n.state(inMoby(t.Context()), t), moby)
			for _, ref := range []string{
				"odd:1", "quay.io/x/odd:2", "odd@" + odd.ID, "quay.io/x/odd:7@" + odd.ID, d.configs[odd.ID],
				d.configs[dangling.ID], "foreign:1", d.configs[foreign.ID],
			} {
				n.expectCRI(t, ref, true)
			}
			if links := links(t, n, "docker.io/library/odd:1", "capable"); links != 2 {
				t.Errorf("a file has %d links: it was not adopted", links)
			}
			if added, err := images.Import(t.Context(), d, n.client, refs, nil, images.WithNamespace("moby"), never(t)); err != nil || len(added) > 0 {
				t.Errorf("a second import added %v: %v", added, err)
			}
			if count, err := images.VerifyShared(t.Context(), d, n.client, "moby", refs, func(int64, int64, string) {}); err != nil || count != 5 {
				t.Errorf("%d layers verified: %v", count, err)
			}
			n.withoutMoby(t)
			agenttest.Same(t, rootfs(t, n, "docker.io/library/odd:1"), want)
			n.whole(t)
			if err := images.Undo(t.Context(), n.client, "run", nil); err != nil {
				t.Fatal(err)
			}
			n.expectNothing(t)
		})
	}
}

// TestVerifyShared finds whatever is not as the digests say.
func TestVerifyShared(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n, d := startOverlay(t, release), newSharingDocker()
			linked := layerOf(t, []*tar.Header{ // through a link of the same layer
				{Typeflag: tar.TypeSymlink, Name: "lib", Linkname: "/there/lib"},
				{Typeflag: tar.TypeDir, Name: "there/", Mode: 0o755},
				{Typeflag: tar.TypeSymlink, Name: "there/lib", Linkname: "../../real"},
				{Typeflag: tar.TypeDir, Name: "real/", Mode: 0o755},
				{Typeflag: tar.TypeReg, Name: "lib/direct", Size: 9, Mode: 0o600},
			})
			through := layerOf(t, []*tar.Header{{Typeflag: tar.TypeReg, Name: "lib/new/file", Size: 9, Mode: 0o600}})
			d.pull(t, n, runtime.GOARCH, []string{"odd:1"}, append(oddLayers(t), linked, through))
			shareAll(t, n, d, []string{"odd:1"}, never(t))
			verify := func() error {
				count, err := images.VerifyShared(t.Context(), d, n.client, "moby", []string{"odd:1", "gone:1"}, func(int64, int64, string) {})
				if err == nil && count != 5 {
					t.Errorf("%d layers verified", count)
				}
				return err
			}
			if err := verify(); err != nil {
				t.Fatal(err)
			}
			root := filepath.Join(filepath.Dir(n.address), "root")
			const fs = "io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs/"
			for _, kind := range []string{fs + "etc/passwd", fs + "lib/new/file", fs + "real/direct", "io.containerd.content.v1.content/blobs/sha256/*"} {
				files, err := filepath.Glob(filepath.Join(root, kind))
				if err != nil || len(files) == 0 {
					t.Fatalf("no %s: %v", kind, err)
				}
				for _, file := range files {
					data, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					for _, bad := range [][]byte{append([]byte{data[0] + 1}, data[1:]...), data[:len(data)/2], append(slices.Clone(data), 'x')} {
						if err := os.WriteFile(file, bad, 0o600); err != nil {
							t.Fatal(err)
						}
						longer := len(bad) > len(data) && strings.Contains(kind, "blobs") // which nobody would read
						if verify() == nil && !longer {
							t.Errorf("%s was changed to %d bytes", file, len(bad))
						}
					}
					if err := os.WriteFile(file, data, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := verify(); err != nil {
				t.Errorf("as it was: %v", err)
			}
		})
	}
}

// withoutMoby removes what Docker has, and collects garbage.
func (n node) withoutMoby(t *testing.T) {
	t.Helper()
	list, err := n.client.ImageService().List(inMoby(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range list {
		if err := n.client.ImageService().Delete(inMoby(t.Context()), image.Name); err != nil {
			t.Fatal(err)
		}
	}
	if left := n.state(inMoby(t.Context()), t); len(left) > 0 {
		t.Errorf("Docker still has %v", left)
	}
}

// whole reads all blobs of all images.
func (n node) whole(t *testing.T) {
	t.Helper()
	store := n.client.ContentStore()
	count := 0
	if err := store.Walk(t.Context(), func(info content.Info) error {
		data, err := content.ReadBlob(t.Context(), store, ocispec.Descriptor{Digest: info.Digest, Size: info.Size})
		if err == nil && digest.FromBytes(data) != info.Digest {
			err = fmt.Errorf("%s has another content", info.Digest)
		}
		count++
		return err
	}); err != nil || count < 10 {
		t.Errorf("%d blobs: %v", count, err)
	}
	list, err := n.client.ListImages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range list {
		if unpacked, err := image.IsUnpacked(t.Context(), "overlayfs"); err != nil || !unpacked {
			t.Errorf("%s is not unpacked: %v", image.Name(), err)
		}
	}
}

// TestSharedOtherwise brings images whose snapshots, or blobs, cannot be shared.
func TestSharedOtherwise(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name+"/unpacked again", func(t *testing.T) {
			n, d := startOverlay(t, release), newSharingDocker()
			d.pull(t, n, runtime.GOARCH, []string{"odd:1"}, oddLayers(t))
			blobs := n.blobs(t)
			var why []string
			fallback := images.WithFallback(func(_ string, err error) { why = append(why, err.Error()) })
			shareAll(t, n, d, []string{"odd:1"}, fallback, images.WithSnapshotter("native"), images.WithRoot(images.Space{Dir: "/"}))
			if len(why) != 1 || !strings.Contains(why[0], "unpacked again") {
				t.Errorf("the reason is %q", why)
			}
			agenttest.Same(t, n.blobs(t), blobs)
			n.expectCRI(t, "odd:1", true)
			if err := images.Undo(t.Context(), n.client, "run", nil); err != nil {
				t.Fatal(err)
			}
			n.expectNothing(t)
			if f, err := images.Shareable(t.Context(), n.client, "moby", "native"); f != nil || err != nil {
				t.Errorf("another snapshotter is said to do (%v)", err)
			}
		})
		t.Run(release.Name+"/streamed", func(t *testing.T) {
			n, d := startOverlay(t, release), newSharingDocker()
			image := d.pull(t, n, runtime.GOARCH, []string{"odd:1"}, oddLayers(t))
			if err := n.client.ContentStore().Delete(inMoby(t.Context()), digest.Digest(d.configs[image.ID])); err != nil {
				t.Fatal(err)
			}
			var why error
			_, err := images.Import(t.Context(), d, n.client, []string{"odd:1"}, nil, images.WithNamespace("moby"),
				images.WithFallback(func(_ string, err error) { why = err }))
			if err == nil || why == nil || !slices.Equal(d.saved, []string{image.ID}) {
				t.Errorf("Docker saved %v because of %v: %v", d.saved, why, err)
			}
			n.withoutMoby(t)
			if f, err := images.Shareable(t.Context(), n.client, "moby", "overlayfs"); f != nil || err != nil {
				t.Errorf("images are said to be there (%v)", err)
			}
		})
		t.Run(release.Name+"/isolated", func(t *testing.T) {
			n, d := startWith(t, release, "[plugins.\"io.containerd.metadata.v1.bolt\"]\ncontent_sharing_policy = \"isolated\"\n", containerd.Settings{}), newSharingDocker()
			d.pull(t, n, runtime.GOARCH, []string{"odd:1"}, oddLayers(t))
			blobs := n.blobs(t)
			full := t.TempDir()
			if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=1m"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(full, unix.MNT_DETACH) })
			_, err := images.Import(t.Context(), d, n.client, []string{"odd:1"}, nil, images.WithNamespace("moby"), images.WithRun("run"), images.WithRoot(images.Space{Dir: full}))
			if err == nil || !strings.Contains(err.Error(), ", 1 MiB are free") {
				t.Errorf("on a full disk: %v", err)
			}
			shareAll(t, n, d, []string{"odd:1"}, never(t))
			n.expectCRI(t, "odd:1", true)
			n.withoutMoby(t)
			agenttest.Same(t, n.blobs(t), blobs)
		})
	}
}

// sharings is how often TestSharingKilled kills: what keeps the lease and finishes is TestAdoptionKilled's, too.
const sharings = 15

// TestSharingKilled kills a process that shares, at any time, and lets another one finish.
func TestSharingKilled(t *testing.T) {
	if address := os.Getenv("SHARE_CONTAINERD"); address != "" {
		shareInChild(t, address)
		return
	}
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n, d := startOverlay(t, release), newSharingDocker()
			layers := oddLayers(t)
			d.pull(t, n, runtime.GOARCH, []string{"odd:1"}, layers)
			d.pull(t, n, runtime.GOARCH, []string{"other:1"}, layers[:2])
			list, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			moby, blobs := n.state(inMoby(t.Context()), t), n.blobs(t)
			shareAll(t, n, d, []string{"odd:1", "other:1"}, never(t))
			want := rootfs(t, n, "docker.io/library/odd:1")
			snaps, have := n.inventory(t)
			undo := func() {
				t.Helper()
				if err := images.Undo(t.Context(), n.client, "run", nil); err != nil {
					t.Fatal(err)
				}
			}
			startSharing := func() child {
				t.Helper()
				return startChild(t, "TestSharingKilled", "SHARE_CONTAINERD="+n.address, "SHARE_DOCKER="+string(list))
			}
			undo()
			took := startSharing().time(t)
			interrupted := 0
			for range sharings {
				undo()
				took = startSharing().kill(took)
				if left, err := n.client.LeasesService().List(t.Context()); err != nil || len(left) > 0 {
					interrupted++
				}
				shareAll(t, n, d, []string{"odd:1", "other:1"}, never(t))
				if s, b := n.inventory(t); !slices.Equal(s, snaps) || !slices.Equal(b, have) {
					t.Fatalf("after a kill there are %v and %v, want %v and %v", s, b, snaps, have)
				}
			}
			t.Logf("%d of %d were killed at work", interrupted, sharings)
			if interrupted < sharings/5 {
				t.Error("too few were killed at work")
			}
			agenttest.Same(t, rootfs(t, n, "docker.io/library/odd:1"), want)
			agenttest.Same(t, n.state(inMoby(t.Context()), t), moby)
			agenttest.Same(t, n.blobs(t), blobs)
			undo()
			n.expectNothing(t)
		})
	}
}

func shareInChild(t *testing.T, address string) {
	d := newSharingDocker()
	if err := json.Unmarshal([]byte(os.Getenv("SHARE_DOCKER")), d); err != nil {
		t.Fatal(err)
	}
	c, err := containerd.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(working)
	if _, err := images.Import(t.Context(), d, c, []string{"odd:1", "other:1"}, nil, images.WithNamespace("moby"), images.WithRun("run")); err != nil {
		t.Fatal(err)
	}
}
