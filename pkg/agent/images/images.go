// Package images brings Docker's images into containerd's namespace k8s.io, so that no image is pulled again: under all their
// tags and under the registry's digests, which Docker's export does not hold. It adopts Docker's layers by hard links where
// package adopt can, streams `docker save` into containerd where it cannot, and leaves Docker's copy alone. The agent's step
// images calls it.
package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images/adopt"
)

// Source is what Import needs of Docker; *docker.Client is one.
type Source interface {
	Image(ctx context.Context, ref string) (docker.Image, error)
	Save(ctx context.Context, ref string) (io.ReadCloser, error)
}

// Option changes how Import works.
type Option func(*importer)

// WithSnapshotter unpacks images for the named snapshotter, which has to be the one that CRI is configured with, instead of
// containerd's default one.
func WithSnapshotter(name string) Option { return func(i *importer) { i.into.snapshotter = name } }

// WithDockerRoot adopts the images below Docker's data root instead of streaming them, where that can be done.
func WithDockerRoot(root string) Option { return func(i *importer) { i.dockerRoot = root } }

// WithRoot tells where containerd keeps its data, so that its space is looked at before an image is streamed after all, and all that was
// brought is written out in the end.
func WithRoot(root Space) Option { return func(i *importer) { i.root = root } }

// WithTemporary tells where Docker writes an image that it saves, so that its space is looked at, too, before an image is streamed after all.
func WithTemporary(dir Space) Option { return func(i *importer) { i.temporary = dir } }

// WithRun labels the records that are made, so that Undo finds them.
func WithRun(run string) Option {
	return func(i *importer) { i.into.run = run }
}

// WithFallback has why called for each image that could not be adopted.
func WithFallback(why func(image string, err error)) Option {
	return func(i *importer) { i.fallback = why }
}

// WithSkipped has why called for each image of another architecture that could not be brought; without, it is an error.
func WithSkipped(why func(ref string, err error)) Option {
	return func(i *importer) { i.skipped = why }
}

type importer struct {
	source     Source
	into       destination
	dockerRoot string
	root       Space
	temporary  Space
	fallback   func(image string, err error)
	skipped    func(ref string, err error)

	namespace string
	inside    *adopt.Namespace // namespace

	store   *adopt.Store   // of dockerRoot
	adopter *adopt.Adopter // nil where nothing can be adopted, which unfit tells why of, if that was wanted
	unfit   error

	streaming sync.Mutex // one image at a time: each needs space
	mu        sync.Mutex // of what follows, and around calls of report, fallback and skipped
	seen      map[string]bool
	added     []string
	brought   []ocispec.Descriptor // what the images' records refer to
	recorded  []string             // the images' records; not those that CRI adds by itself, some time later
	done      int64
}

// Import brings refs (names, names with digests, or image IDs) from Docker into containerd and returns the names of the image
// records that are there now and were not before, also with an error, so that Remove can undo it. An image that containerd
// has under all its names is not read from Docker. A tag that stands for another image in containerd is moved to Docker's,
// which is the one the node has been running. Refs that Docker does not have are skipped: a pod's image may not have been
// pulled yet. What an Import brought that the end of the host interrupted is to be undone first: files of it may be lost. report, if not nil, is called after each ref with how many are done.
func Import(ctx context.Context, d Source, c *client.Client, refs []string, report func(done, total int64, ref string), opts ...Option) (added []string, err error) {
	i := &importer{source: d, into: destination{client: c}, seen: map[string]bool{}}
	for _, opt := range opts {
		opt(i)
	}
	err = underLease(ctx, c, func(ctx context.Context) error { return i.importAll(ctx, refs, report) })
	if err == nil {
		err = i.lookAgain(ctx)
	}
	if err == nil && i.root.Dir != "" {
		// containerd's records are on the disk by now, what they refer to may not be: neither Docker nor containerd writes out the files of
		// the layers that it unpacks, nor is it done above for each of them.
		err = host.SyncFileSystems(i.dockerRoot, i.root.Dir)
	}
	return i.added, err
}

// lookAgain makes sure that all images and their records exist after the lease has ended, and with it whatever no record keeps. It looks at
// the records, too: content can be kept by the record that CRI makes for each image.
func (i *importer) lookAgain(ctx context.Context) error {
	for _, target := range i.brought {
		if !i.into.complete(ctx, target) {
			return fmt.Errorf("import images: containerd does not have all of image %s any more, which was there a moment ago", target.Digest)
		}
	}
	for _, name := range i.recorded {
		if _, err := i.into.client.ImageService().Get(ctx, name); err != nil {
			return fmt.Errorf("import images: image %s was removed from containerd while others were brought: %w", name, err)
		}
	}
	return nil
}

func (i *importer) importAll(ctx context.Context, refs []string, report func(done, total int64, ref string)) error {
	limit := 1
	if i.open(ctx); i.adopter != nil {
		defer i.store.Close()
		limit = together
	}
	if i.inside != nil {
		defer i.inside.Close()
		limit = together
	}
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(limit)
	for _, ref := range refs {
		group.Go(func() error {
			if err := i.bringRef(inner, ref); err != nil {
				return fmt.Errorf("import image %s: %w", ref, err)
			}
			if report != nil {
				i.mu.Lock()
				defer i.mu.Unlock()
				i.done++
				report(i.done, int64(len(refs)), ref)
			}
			return nil
		})
	}
	return group.Wait()
}

// together is how many images are adopted at once. Most of their time, they wait for containerd, which writes its database out for each step.
const together = 4

// open makes what shares or adopts images, where that may be done at all.
func (i *importer) open(ctx context.Context) {
	if i.namespace != "" {
		i.inside = adopt.OpenNamespace(i.into.client, i.namespace)
		i.inside.Keep = max(Reserve, i.root.Keep)
		return
	}
	if i.dockerRoot == "" || i.into.snapshotter != "" && i.into.snapshotter != adopt.Snapshotter {
		return
	}
	if i.store, i.unfit = adopt.Open(i.dockerRoot); i.unfit == nil {
		i.adopter, i.unfit = adopt.New(ctx, i.into.client, i.store, max(Reserve, i.root.Keep))
	}
}

// bringRef brings the image that Docker has under ref, unless it has none or another ref has brought it.
func (i *importer) bringRef(ctx context.Context, ref string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	image, err := i.source.Image(ctx, ref)
	if docker.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	i.mu.Lock()
	seen := i.seen[image.ID]
	i.seen[image.ID] = true
	i.mu.Unlock()
	if seen {
		return nil
	}
	names, err := i.add(ctx, image)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.added = append(i.added, names...)
	if err != nil && ctx.Err() == nil && i.skipped != nil && foreign(image) {
		i.skipped(ref, err)
		return nil
	}
	return err
}

// foreign tells an image whose programs do not run on this host, but for an emulator.
func foreign(image docker.Image) bool {
	platform, err := platforms.Parse(image.Platform)
	return err == nil && !platforms.Default().Match(platform)
}

// bring shares or adopts the image, or streams and unpacks it.
func (i *importer) bring(ctx context.Context, image docker.Image, known sharing) (target *ocispec.Descriptor, err error) {
	switch {
	case i.inside != nil:
		target, err = i.share(ctx, image, known)
	case i.adopter == nil && i.unfit == nil:
		return i.stream(ctx, image)
	default:
		target, err = i.adopt(ctx, image)
	}
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrNoSpace) { // a stream needs more space still
		return target, err
	}
	i.why(image, err)
	i.streaming.Lock()
	defer i.streaming.Unlock()
	// Nobody has looked for so much space, since adoption needs hardly any.
	if err := i.enough(image); err != nil {
		return nil, err
	}
	return i.stream(ctx, image)
}

func (i *importer) why(image docker.Image, err error) {
	if i.fallback != nil {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.fallback(image.ID, err)
	}
}

func (i *importer) adopt(ctx context.Context, image docker.Image) (*ocispec.Descriptor, error) {
	if i.unfit != nil {
		return nil, i.unfit
	}
	onDisk, err := i.store.Image(image.ID)
	if err != nil {
		return nil, err
	}
	target, err := i.adopter.Adopt(ctx, onDisk)
	return &target, err
}

// add brings one image and returns the records it made.
func (i *importer) add(ctx context.Context, image docker.Image) ([]string, error) {
	known := i.look(ctx, image)
	names, err := recordNames(image, known.id)
	if err != nil {
		return nil, err
	}
	target, missing, err := i.into.present(ctx, known.id, names)
	if err != nil {
		return nil, err
	}
	if target == nil {
		target, err = i.bring(ctx, image, known)
	} else {
		err = i.into.unpack(ctx, *target)
	}
	if err != nil {
		return nil, err
	}
	added, err := i.into.record(ctx, *target, missing)
	if err == nil {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.brought = append(i.brought, *target)
		i.recorded = append(i.recorded, names...)
	}
	return added, err
}
