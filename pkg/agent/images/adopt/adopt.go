package adopt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// Snapshotter is the only one whose snapshots have the form of overlay2's layers.
const Snapshotter = "overlayfs"

// prefix marks the keys of snapshots that are being filled; none outlives Adopt but by the caller's lease.
const prefix = "kubectl-runtime-adopt-"

// Adopter makes containerd's snapshots out of Docker's layers, each once, whatever the number of images that have it. Several images may
// be adopted at the same time.
type Adopter struct {
	from      source
	snapshots snapshots.Snapshotter
	content   content.Store
	// hold adds a snapshot that this run did not make to the lease.
	hold func(context.Context, digest.Digest) error
	// keep is how many bytes copies leave free on the file system.
	keep int64
	// filling has room for as many as may link or copy files at once.
	filling chan struct{}

	mu     sync.Mutex
	layers map[digest.Digest]*making // by chain ID
}

// source is where Docker has the layers.
type source interface {
	// Dir is where the layer's files lie.
	Dir(layer Layer) string
	// Holds tells whether Docker still has the image with this very layer, so that what was read of it was read whole.
	Holds(ctx context.Context, image digest.Digest, layer Layer) bool
	between(from, to string) (*view, error)
}

// making is a layer on its way to containerd.
type making struct {
	image digest.Digest // for which it is made
	done  chan struct{}
	err   error // once it is done
}

// New returns an Adopter of what store has. ctx has to carry the lease that holds snapshots and blobs until an image record does; whatever an
// interrupted Adopt left goes with that lease. The same has to be in the contexts that Adopt is called with. Where layers have to be copied, keep
// bytes stay free.
func New(ctx context.Context, c *client.Client, store *Store, keep int64) (*Adopter, error) {
	return newAdopter(ctx, c, store, keep)
}

func newAdopter(ctx context.Context, c *client.Client, from source, keep int64) (*Adopter, error) {
	if _, ok := leases.FromContext(ctx); !ok {
		return nil, errors.New("adopt images: there is no lease")
	}
	return &Adopter{
		from: from, keep: keep, snapshots: c.SnapshotService(Snapshotter), content: c.ContentStore(),
		hold:    func(ctx context.Context, chain digest.Digest) error { return Hold(ctx, c, Snapshotter, chain) },
		filling: make(chan struct{}, max(2, min(runtime.NumCPU(), 8))),
		layers:  map[digest.Digest]*making{},
	}, nil
}

// Hold adds a snapshot to the lease that ctx carries. It succeeds also where there is no such snapshot.
func Hold(ctx context.Context, c *client.Client, snapshotter string, chain digest.Digest) error {
	id, _ := leases.FromContext(ctx)
	return c.LeasesService().AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: chain.String(), Type: "snapshots/" + snapshotter})
}

// Adopt makes the image's snapshots in containerd, with config and manifest, and returns the manifest's descriptor. It writes nothing out: the
// caller does that at once for all images, before anybody counts on them.
//
// The manifest is the one that `docker save` would write, with the layers as uncompressed tars, and no layer's blob is stored:
// containerd unpacks only what has no snapshot, and CRI (1.6 to 2.4) asks for manifest and config alone.
func (a *Adopter) Adopt(ctx context.Context, image Image) (ocispec.Descriptor, error) {
	if err := a.all(ctx, image); err != nil {
		return ocispec.Descriptor{}, err
	}
	return write(ctx, a.content, image)
}

// all makes the image's snapshots.
func (a *Adopter) all(ctx context.Context, image Image) error {
	group, ctx := errgroup.WithContext(ctx)
	for n := range image.Layers {
		group.Go(func() error { return a.layer(ctx, image, n) })
	}
	return group.Wait()
}

// layer sees to the image's n-th layer and to those below it: it makes it, or waits until it was made. What failed for another image is tried
// again.
func (a *Adopter) layer(ctx context.Context, image Image, n int) error {
	chain := image.Layers[n].ChainID
	for {
		a.mu.Lock()
		m, taken := a.layers[chain]
		if !taken {
			m = &making{image: image.ID, done: make(chan struct{})}
			a.layers[chain] = m
		}
		a.mu.Unlock()
		if !taken {
			if m.err = a.make(ctx, image, n); m.err != nil {
				m.err = fmt.Errorf("adopt layer %s: %w", chain, m.err)
				a.mu.Lock()
				delete(a.layers, chain)
				a.mu.Unlock()
			}
			close(m.done)
			return m.err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.done:
			if m.err == nil || m.image == image.ID {
				return m.err
			}
		}
	}
}

// made tells whether the layer is there, without waiting.
func (a *Adopter) made(chain digest.Digest) bool {
	a.mu.Lock()
	m := a.layers[chain]
	a.mu.Unlock()
	if m == nil {
		return false
	}
	select {
	case <-m.done:
		return m.err == nil
	default:
		return false
	}
}

// make adopts one layer, unless containerd has it.
func (a *Adopter) make(ctx context.Context, image Image, n int) error {
	chain := image.Layers[n].ChainID
	for {
		if there, err := a.there(ctx, chain); err != nil || there {
			return err
		}
		key := prefix + "final-" + chain.Encoded()
		if err := a.assemble(ctx, image, n, key); err != nil {
			a.discard(ctx, key)
			return err
		}
		// As containerd marks what it unpacks (core/unpack).
		err := a.snapshots.Commit(ctx, chain.String(), key, snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: chain.String()}))
		if err == nil {
			return nil
		}
		a.discard(ctx, key)
		if !errdefs.IsAlreadyExists(err) { // else someone pulled the same layer at the same time
			return err
		}
	}
}

// assemble puts a layer together in the new snapshot key. Where its parent is still being made, it does so in a snapshot without one, whose
// entries are moved when the parent is there: to rename a few takes no time.
func (a *Adopter) assemble(ctx context.Context, image Image, n int, key string) error {
	select {
	case a.filling <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	layer := image.Layers[n]
	at, parent := key, layer.Parent
	if n > 0 && !a.made(layer.Parent) {
		at, parent = prefix+layer.ChainID.Encoded(), ""
		defer func() { a.discard(ctx, at) }()
	}
	dir, err := a.fill(ctx, layer, at, parent)
	<-a.filling
	if err == nil && !a.from.Holds(ctx, image.ID, layer) {
		err = fmt.Errorf("%w: Docker removed it meanwhile", ErrUnsuitable)
	}
	if err != nil || at == key {
		return err
	}
	if err := a.layer(ctx, image, n-1); err != nil {
		return err
	}
	final, err := a.prepare(ctx, key, layer.Parent)
	if err != nil {
		return err
	}
	return move(dir, final)
}

// there reports whether the snapshot exists, and makes it stay. One that exists may be garbage that containerd has yet to collect, such as
// what was left of a pod, and a lease takes the names of what does not exist, too. So only what is found under the lease counts.
func (a *Adopter) there(ctx context.Context, chain digest.Digest) (bool, error) {
	info, err := a.snapshots.Stat(ctx, chain.String())
	if err == nil {
		if err := a.hold(ctx, chain); err != nil {
			return false, fmt.Errorf("hold snapshot %s: %w", chain, err)
		}
		info, err = a.snapshots.Stat(ctx, chain.String())
	}
	switch {
	case errdefs.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look for snapshot %s: %w", chain, err)
	case info.Kind != snapshots.KindCommitted:
		return false, fmt.Errorf("snapshot %s is %s", chain, info.Kind)
	}
	return true, nil
}

// fill assembles a layer in a new snapshot by hard links, and by copies where the file system does not allow links. It returns the snapshot's
// directory.
func (a *Adopter) fill(ctx context.Context, layer Layer, key string, parent digest.Digest) (dir string, err error) {
	if dir, err = a.prepare(ctx, key, parent); err != nil {
		return "", err
	}
	from := a.from.Dir(layer)
	v, err := a.from.between(from, dir)
	if err == nil {
		err = mirror(ctx, v.open, from, dir, false)
	}
	// Another file system, too many links to one file, or a file that chattr made immutable.
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EPERM) {
		if dir, err = a.prepare(ctx, key, parent); err != nil {
			return "", err
		}
		return dir, a.mirrorByCopies(ctx, from, dir, layer.Size)
	}
	return dir, err
}

func (a *Adopter) mirrorByCopies(ctx context.Context, from, to string, size int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(to, &fs); err != nil {
		return fmt.Errorf("look for space in %s: %w", to, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < size+a.keep { //nolint:gosec // no file system is that large
		return fmt.Errorf("copy %d MiB to %s: only %d MiB are free, and %d MiB have to stay", size>>20, to, free>>20, a.keep>>20)
	}
	return mirror(ctx, directly, from, to, true)
}

// prepare makes an empty snapshot, instead of what was left under that key, and returns the directory that its own files are in.
func (a *Adopter) prepare(ctx context.Context, key string, parent digest.Digest) (string, error) {
	mounts, err := a.snapshots.Prepare(ctx, key, parent.String())
	if errdefs.IsAlreadyExists(err) {
		if err := a.snapshots.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return "", fmt.Errorf("remove snapshot %s: %w", key, err)
		}
		mounts, err = a.snapshots.Prepare(ctx, key, parent.String())
	}
	if err != nil {
		return "", fmt.Errorf("prepare snapshot %s: %w", key, err)
	}
	return upper(mounts)
}

// upper finds the directory of a snapshot's own files: what is bind-mounted where there is no parent, else overlayfs's upper one.
func upper(mounts []mount.Mount) (string, error) {
	if len(mounts) == 1 {
		m := mounts[0]
		if m.Type == "bind" && filepath.IsAbs(m.Source) {
			return m.Source, nil
		}
		for _, option := range m.Options {
			if dir, ok := strings.CutPrefix(option, "upperdir="); ok && m.Type == "overlay" && filepath.IsAbs(dir) {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("%w: snapshots are mounted in an unknown way: %v", ErrUnsuitable, mounts)
}

// move moves all entries of one directory to another, and its properties with them.
func move(from, to string) error {
	var stat unix.Stat_t
	if err := unix.Stat(from, &stat); err != nil {
		return fmt.Errorf("stat %s: %w", from, err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := unix.Rename(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())); err != nil {
			return fmt.Errorf("move %s: %w", filepath.Join(from, entry.Name()), err)
		}
	}
	return finish(from, to, "/", stat)
}

// cleanupTimeout bounds the removal of a snapshot that is not needed, whatever became of the caller's context.
const cleanupTimeout = 10 * time.Second

// discard removes a snapshot that is not needed. One that stays goes with the lease.
func (a *Adopter) discard(ctx context.Context, key string) {
	ctx, cancel := host.Outlive(ctx, cleanupTimeout)
	defer cancel()
	_ = a.snapshots.Remove(ctx, key)
}

// write stores config and manifest. Labels make the garbage collector keep what they refer to: the manifest keeps the config, the
// config the topmost snapshot, and each snapshot its parent.
func write(ctx context.Context, store content.Store, image Image) (ocispec.Descriptor, error) {
	config := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: image.ID, Size: int64(len(image.Config))}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config}
	for _, layer := range image.Layers {
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: layer.DiffID, Size: layer.Size})
	}
	data, err := json.Marshal(manifest)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write manifest of %s: %w", image.ID, err)
	}
	top := image.Layers[len(image.Layers)-1].ChainID.String()
	if err := blob(ctx, store, config, image.Config, "containerd.io/gc.ref.snapshot."+Snapshotter, top); err != nil {
		return ocispec.Descriptor{}, err
	}
	target := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := blob(ctx, store, target, data, "containerd.io/gc.ref.content.config", image.ID.String()); err != nil {
		return ocispec.Descriptor{}, err
	}
	return target, nil
}

// blob stores data with a label, which a blob that was there may lack.
func blob(ctx context.Context, store content.Store, desc ocispec.Descriptor, data []byte, label, value string) error {
	labels := map[string]string{label: value}
	err := content.WriteBlob(ctx, store, prefix+desc.Digest.Encoded(), strings.NewReader(string(data)), desc, content.WithLabels(labels))
	if err != nil {
		return fmt.Errorf("write blob %s: %w", desc.Digest, err)
	}
	// To look takes containerd less time than to write.
	if info, err := store.Info(ctx, desc.Digest); err == nil && info.Labels[label] == value {
		return nil
	}
	if _, err := store.Update(ctx, content.Info{Digest: desc.Digest, Labels: labels}, "labels."+label); err != nil {
		return fmt.Errorf("label blob %s: %w", desc.Digest, err)
	}
	return nil
}
