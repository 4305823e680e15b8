package adopt

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/metadata"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// Namespace is Docker's image store where that is a namespace of the containerd that Kubernetes is to use: Docker's feature
// containerd-snapshotter, from 24 on, the default of a new 29 (moby daemon/containerd). Nothing in it is changed, but for a view of a
// snapshot that is there for a moment.
type Namespace struct {
	// Keep is how many bytes stay free where layers have to be copied.
	Keep int64

	client *client.Client
	name   string
	links

	once    sync.Once
	adopter *Adopter
	unfit   error
}

// OpenNamespace returns Docker's namespace, to be closed in the end. That there is none shows with the first image.
func OpenNamespace(c *client.Client, name string) *Namespace {
	return &Namespace{client: c, name: name}
}

// remappedNamespace ends like Docker's does with userns-remap (api/types/system of 27 and later, ContainerdNamespaces).
var remappedNamespace = regexp.MustCompile(`-[0-9]+\.[0-9]+$`)

// in is for calls that concern the namespace: without the lease, which is one of the other namespace.
func (n *Namespace) in(ctx context.Context) context.Context {
	if md, ok := metadata.FromOutgoingContext(ctx); ok {
		md = md.Copy()
		md.Delete("containerd-lease") // core/leases/grpc.go, GRPCHeader
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	return namespaces.WithNamespace(ctx, n.name)
}

// Shared is an image of a Namespace, with all blobs that a node needs of it.
type Shared struct {
	// Target is what the image's records are to refer to: what Docker's do, or one platform's manifest, if that is all there is.
	Target ocispec.Descriptor
	// ID is the config's digest, which CRI calls an image by. Docker's own ID is that of what its records refer to.
	ID digest.Digest
	// Layers go from the base up. They have no CacheID.
	Layers []Layer
	// dockers is what Docker's records refer to.
	dockers ocispec.Descriptor
	// blobs are all there are from Target down, and children what each refers to.
	blobs    []ocispec.Descriptor
	children map[digest.Digest][]ocispec.Descriptor
}

// IDs lists the IDs of all images that Docker has, as Docker calls them.
func (n *Namespace) IDs(ctx context.Context) (map[string]bool, error) {
	list, err := n.client.ImageService().List(n.in(ctx))
	if err != nil {
		return nil, fmt.Errorf("list the images of containerd's namespace %s: %w", n.name, err)
	}
	ids := map[string]bool{}
	for _, image := range list {
		ids[image.Target.Digest.String()] = true
	}
	return ids, nil
}

// Image finds the image with Docker's ID and the blobs of one platform: the one that containerd would run here or, without it, the
// only one that is there. An index may name others; Docker pulls what it needs.
func (n *Namespace) Image(ctx context.Context, id string) (Shared, error) {
	fail := func(err error) (Shared, error) {
		return Shared{}, unsuitable(fmt.Sprintf("look for Docker's image %s in containerd's namespace %s", id, n.name), err)
	}
	ctx = n.in(ctx)
	dockers, err := n.target(ctx, id)
	if err != nil {
		return fail(err)
	}
	path, err := n.choose(ctx, dockers)
	if err != nil {
		return fail(err)
	}
	store := n.client.ContentStore()
	manifest, err := images.Manifest(ctx, store, path[len(path)-1], nil)
	if err != nil {
		return fail(err)
	}
	image := Shared{Target: dockers, ID: manifest.Config.Digest, dockers: dockers, children: map[digest.Digest][]ocispec.Descriptor{}}
	if found, err := images.Config(ctx, store, dockers, platforms.Default()); err != nil || found.Digest != image.ID {
		target := path[len(path)-1]
		target.Platform, target.Annotations = nil, nil
		image.Target, path = target, []ocispec.Descriptor{target}
	}
	for at, desc := range path[:len(path)-1] {
		image.children[desc.Digest] = path[at+1 : at+2]
	}
	below := append([]ocispec.Descriptor{manifest.Config}, manifest.Layers...)
	image.children[path[len(path)-1].Digest] = below
	image.blobs = append(path, below...)
	if image.Layers, err = n.layers(ctx, manifest); err != nil {
		return fail(err)
	}
	return image, nil
}

// target is what Docker's records refer to. Those of one image have any names, or moby-dangling@ID.
func (n *Namespace) target(ctx context.Context, id string) (ocispec.Descriptor, error) {
	dgst, err := digest.Parse(id)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	records, err := n.client.ImageService().List(ctx, "target.digest=="+dgst.String())
	if err == nil && len(records) == 0 {
		err = fmt.Errorf("no record: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return records[0].Target, nil
}

// choose returns the way from target, an index or a manifest, to the manifest of the platform that is there whole.
func (n *Namespace) choose(ctx context.Context, target ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if !images.IsIndexType(target.MediaType) {
		return []ocispec.Descriptor{target}, n.whole(ctx, target)
	}
	data, err := content.ReadBlob(ctx, n.client.ContentStore(), target)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, err
	}
	here := platforms.Default()
	var own, other [][]ocispec.Descriptor
	for _, desc := range index.Manifests {
		// What a build attests of the others is no image (image-spec; BuildKit, docs/attestations/attestation-storage.md).
		if desc.Platform != nil && desc.Platform.OS == "unknown" {
			continue
		}
		path, err := n.choose(ctx, desc)
		if err != nil {
			continue // another platform's, which Docker did not pull
		}
		path = append([]ocispec.Descriptor{target}, path...)
		if desc.Platform == nil || here.Match(*desc.Platform) {
			own = append(own, path)
		} else {
			other = append(other, path)
		}
	}
	slices.SortStableFunc(own, func(a, b []ocispec.Descriptor) int {
		switch one, two := a[1].Platform, b[1].Platform; {
		case one == nil || two == nil || !here.Less(*one, *two) && !here.Less(*two, *one):
			return 0
		case here.Less(*one, *two):
			return -1
		}
		return 1
	})
	if len(own) > 0 {
		return own[0], nil
	}
	if len(other) != 1 {
		return nil, fmt.Errorf("%d of its manifests are there whole, none for this platform", len(other))
	}
	return other[0], nil
}

// whole checks that all blobs of a manifest are there.
func (n *Namespace) whole(ctx context.Context, desc ocispec.Descriptor) error {
	store := n.client.ContentStore()
	manifest, err := images.Manifest(ctx, store, desc, nil)
	if err != nil {
		return err
	}
	for _, blob := range append([]ocispec.Descriptor{manifest.Config}, manifest.Layers...) {
		info, err := store.Info(ctx, blob.Digest)
		if err != nil {
			return err
		}
		if info.Size != blob.Size {
			return fmt.Errorf("blob %s has %d bytes, not %d", blob.Digest, info.Size, blob.Size)
		}
	}
	return nil
}

func (n *Namespace) layers(ctx context.Context, manifest ocispec.Manifest) ([]Layer, error) {
	diffIDs, err := images.RootFS(ctx, n.client.ContentStore(), manifest.Config)
	if err != nil {
		return nil, err
	}
	if len(diffIDs) == 0 || len(diffIDs) != len(manifest.Layers) {
		return nil, fmt.Errorf("its config names %d layers, its manifest %d", len(diffIDs), len(manifest.Layers))
	}
	var layers []Layer
	var parent digest.Digest
	for at, chain := range identity.ChainIDs(slices.Clone(diffIDs)) {
		layers = append(layers, Layer{DiffID: diffIDs[at], ChainID: chain, Parent: parent})
		parent = chain
	}
	return layers, nil
}

// Link brings the image's blobs to the client's own namespace, and has the garbage collector keep what refers to what. ctx carries the
// lease that holds them until a record does. By containerd's content_sharing_policy no byte is read or written: who names a
// blob's digest and size has it (core/metadata/content.go). If an admin has set that to "isolated", the blobs are copied, after
// room was asked whether there is space for so many bytes.
func (n *Namespace) Link(ctx context.Context, image Shared, room func(bytes int64) error) error {
	store, inside := n.client.ContentStore(), n.in(ctx)
	for _, desc := range image.blobs {
		err := func() error {
			info, err := store.Info(inside, desc.Digest)
			if err != nil {
				return err
			}
			from, err := store.ReaderAt(inside, desc)
			if err != nil {
				return err
			}
			defer func() { _ = from.Close() }()
			// Where a blob is from, and what it is unpacked, stays known; what refers to what is said again.
			labels := maps.Clone(info.Labels)
			maps.DeleteFunc(labels, func(key, _ string) bool {
				return key != "containerd.io/uncompressed" && !strings.HasPrefix(key, "containerd.io/distribution.source.")
			})
			to, err := content.OpenWriter(ctx, store, content.WithRef(prefix+desc.Digest.Encoded()), content.WithDescriptor(desc))
			if err != nil {
				if errdefs.IsAlreadyExists(err) {
					err = nil
				}
				return err
			}
			defer func() { _ = to.Close() }()
			// Of what is shared, all is there from the start.
			have, err := to.Status()
			if err == nil && have.Offset < desc.Size {
				err = room(desc.Size - have.Offset)
			}
			if err != nil {
				return err
			}
			return content.Copy(ctx, to, content.NewReader(from), desc.Size, desc.Digest, content.WithLabels(labels))
		}()
		if err != nil {
			return fmt.Errorf("share blob %s: %w", desc.Digest, err)
		}
	}
	children := images.HandlerFunc(func(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		return image.children[desc.Digest], nil
	})
	if err := images.Walk(ctx, images.SetChildrenLabels(store, children), image.Target); err != nil {
		return fmt.Errorf("label the blobs of image %s: %w", image.Target.Digest, err)
	}
	return nil
}

// Adopt makes snapshots of the image's layers by hard links to Docker's, after Link and under the same lease. Where Docker has none, as
// with another snapshotter, it is ErrUnsuitable.
func (n *Namespace) Adopt(ctx context.Context, image Shared) error {
	if remappedNamespace.MatchString(n.name) {
		return fmt.Errorf("%w: Docker remaps users", ErrUnsuitable)
	}
	inside, service := n.in(ctx), n.client.SnapshotService(Snapshotter)
	top := image.Layers[len(image.Layers)-1].ChainID.String()
	dirs, err := layerDirs(inside, service, image.ID, image.Layers)
	if err != nil {
		return unsuitable("look for Docker's snapshot "+top, err)
	}
	layers := slices.Clone(image.Layers)
	for at := range layers {
		usage, err := service.Usage(inside, layers[at].ChainID.String())
		if err != nil {
			return unsuitable(fmt.Sprintf("look for Docker's snapshot %s", layers[at].ChainID), err)
		}
		layers[at].Size, layers[at].dir = usage.Size, dirs[layers[at].ChainID]
	}
	n.once.Do(func() { n.adopter, n.unfit = newAdopter(ctx, n.client, n, n.Keep) })
	if n.unfit != nil {
		return n.unfit
	}
	if err := n.adopter.all(ctx, Image{ID: image.dockers.Digest, Layers: layers}); err != nil {
		return err
	}
	label := "containerd.io/gc.ref.snapshot." + Snapshotter
	update := content.Info{Digest: image.ID, Labels: map[string]string{label: top}}
	if _, err := n.client.ContentStore().Update(ctx, update, "labels."+label); err != nil {
		return fmt.Errorf("label blob %s: %w", image.ID, err)
	}
	return nil
}

// Dir is where Docker's snapshot has the layer's files.
func (n *Namespace) Dir(layer Layer) string { return layer.dir }

// Holds looks for Docker's record, and for the snapshot: Docker deletes the records first, and containerd the snapshots then.
func (n *Namespace) Holds(ctx context.Context, image digest.Digest, layer Layer) bool {
	ctx = n.in(ctx)
	if _, err := n.target(ctx, image.String()); err != nil {
		return false
	}
	_, err := n.client.SnapshotService(Snapshotter).Stat(ctx, layer.ChainID.String())
	return err == nil
}

// layerDirs finds where the files of each layer lie, in the namespace of ctx. The snapshotter tells only how it would mount them, for a
// view: without a lease the next garbage collection removes it if this process is killed.
func layerDirs(ctx context.Context, service snapshots.Snapshotter, image digest.Digest, layers []Layer) (map[digest.Digest]string, error) {
	for _, layer := range layers {
		info, err := service.Stat(ctx, layer.ChainID.String())
		if err != nil {
			return nil, err
		}
		if info.Kind != snapshots.KindCommitted || info.Parent != layer.Parent.String() {
			return nil, fmt.Errorf("snapshot %s is %s on %q", layer.ChainID, info.Kind, info.Parent)
		}
	}
	key := prefix + "where-" + image.Encoded()
	if err := service.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	mounts, err := service.View(ctx, key, layers[len(layers)-1].ChainID.String())
	if err != nil {
		return nil, err
	}
	cleanup, cancel := host.Outlive(ctx, cleanupTimeout)
	defer cancel()
	if err := service.Remove(cleanup, key); err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	lower, err := lowers(mounts)
	if err == nil && len(lower) != len(layers) {
		err = fmt.Errorf("%d directories for %d layers", len(lower), len(layers))
	}
	if err != nil {
		return nil, err
	}
	dirs := map[digest.Digest]string{}
	for at, layer := range layers {
		dirs[layer.ChainID] = lower[len(lower)-1-at]
	}
	return dirs, nil
}
