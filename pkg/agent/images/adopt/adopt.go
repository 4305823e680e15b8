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
)

// Snapshotter is the only one whose snapshots have the form of overlay2's layers.
const Snapshotter = "overlayfs"

// prefix marks the keys of snapshots that are being filled; none outlives Adopt but by the caller's lease.
const prefix = "kubectl-runtime-adopt-"

// Adopt makes the image's snapshots in containerd, with config and manifest, and returns the manifest's descriptor. ctx has to
// carry the lease that holds them until an image record does; whatever an interrupted Adopt left goes with that lease.
//
// The manifest is the one that `docker save` would write, with the layers as uncompressed tars, and no layer's blob is stored:
// containerd unpacks only what has no snapshot, and CRI (1.6 to 2.4) asks for manifest and config alone.
func Adopt(ctx context.Context, c *client.Client, store *Store, image Image) (ocispec.Descriptor, error) {
	holds := func() error {
		if !store.Holds(image) {
			return fmt.Errorf("adopt image %s: %w: Docker removed it meanwhile", image.ID, ErrUnsuitable)
		}
		return nil
	}
	if err := adoptLayers(ctx, c, &store.links, store.Dir, image.Layers, holds); err != nil {
		return ocispec.Descriptor{}, err
	}
	return write(ctx, c.ContentStore(), image)
}

// adoptLayers makes snapshots of layers whose files lie in dir. holds fails if what was read may not have been whole.
func adoptLayers(ctx context.Context, c *client.Client, l *links, dir func(Layer) string, layers []Layer, holds func() error) error {
	lease, ok := leases.FromContext(ctx)
	if !ok {
		return errors.New("adopt an image: there is no lease")
	}
	a := &adoption{
		links: l, dir: dir, snapshots: c.SnapshotService(Snapshotter), staged: map[digest.Digest]staging{},
		hold: func(ctx context.Context, chain digest.Digest) error {
			resource := leases.Resource{ID: chain.String(), Type: "snapshots/" + Snapshotter}
			return c.LeasesService().AddResource(ctx, leases.Lease{ID: lease}, resource)
		},
	}
	defer a.discard(context.WithoutCancel(ctx))
	if err := a.stage(ctx, layers); err != nil {
		return err
	}
	if err := holds(); err != nil {
		return err
	}
	for _, layer := range layers {
		if err := a.commit(ctx, layer); err != nil {
			return fmt.Errorf("adopt layer %s: %w", layer.ChainID, err)
		}
	}
	return nil
}

type adoption struct {
	links     *links
	dir       func(Layer) string
	snapshots snapshots.Snapshotter
	// hold adds a snapshot to the lease that this run did not make.
	hold func(context.Context, digest.Digest) error

	mu sync.Mutex
	// staged are the snapshots without parents in which layers are assembled, by chain ID.
	staged map[digest.Digest]staging
}

// staging is a directory in which a layer is assembled.
type staging struct {
	dir string
	// copies: there is data to be written out, not only links.
	copies bool
}

// stage assembles all missing layers at once. A snapshot needs its parent, so each is filled without one and its entries are moved
// when the parent is there: to rename a few takes no time.
func (a *adoption) stage(ctx context.Context, layers []Layer) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(2, min(runtime.NumCPU(), 8)))
	for _, layer := range layers {
		group.Go(func() error {
			there, err := a.there(ctx, layer.ChainID)
			if err != nil || there {
				return err
			}
			if err := a.fill(ctx, layer); err != nil {
				return fmt.Errorf("adopt layer %s: %w", layer.ChainID, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// syncOut writes a layer out: containerd's database may reach the disk before the directories that it refers to, and what is in the
// database is not looked at again. Links and directories are but entries in the log of ext4 and XFS, which an fsync writes out up to
// there; to write the whole file system out, as copies need it, would wait for whatever else the node has to write.
func syncOut(dir string, copies bool) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd(f), &fs); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	oneLog := fs.Type == unix.EXT4_SUPER_MAGIC || fs.Type == unix.XFS_SUPER_MAGIC
	sync := unix.Syncfs
	if oneLog && !copies {
		sync = unix.Fsync
	}
	if err := sync(fd(f)); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// there tells whether the snapshot exists, and makes it stay.
func (a *adoption) there(ctx context.Context, chain digest.Digest) (bool, error) {
	if err := a.hold(ctx, chain); err != nil {
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		return false, fmt.Errorf("hold snapshot %s: %w", chain, err)
	}
	info, err := a.snapshots.Stat(ctx, chain.String())
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for snapshot %s: %w", chain, err)
	}
	return info.Kind == snapshots.KindCommitted, nil
}

// fill assembles a layer by hard links, and by copies where the file system does not allow links.
func (a *adoption) fill(ctx context.Context, layer Layer) error {
	err := a.fillBy(ctx, layer, false)
	// Another file system, too many links to one file, or a file that chattr made immutable.
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EPERM) {
		err = a.fillBy(ctx, layer, true)
	}
	return err
}

func (a *adoption) fillBy(ctx context.Context, layer Layer, copies bool) error {
	dir, err := a.prepare(ctx, prefix+layer.ChainID.Encoded(), "")
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.staged[layer.ChainID] = staging{dir: dir, copies: copies}
	a.mu.Unlock()
	from := a.dir(layer)
	if copies {
		return mirrorByCopies(ctx, from, dir, layer.Size)
	}
	v, err := a.links.between(from, dir)
	if err != nil {
		return err
	}
	return mirror(ctx, v.open, from, dir, false)
}

// reserve is what copies leave free on the file system, in bytes.
const reserve = 1 << 30

func mirrorByCopies(ctx context.Context, from, to string, size int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(to, &fs); err != nil {
		return fmt.Errorf("look for space in %s: %w", to, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < size+reserve { //nolint:gosec // no file system is that large
		return fmt.Errorf("copy %d MiB to %s: only %d MiB are free, and %d MiB have to stay", size>>20, to, free>>20, reserve>>20)
	}
	return mirror(ctx, directly, from, to, true)
}

// prepare makes an empty snapshot, instead of what was left under that key, and returns the directory that its own files are in.
func (a *adoption) prepare(ctx context.Context, key, parent string) (string, error) {
	if err := a.snapshots.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		return "", fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	mounts, err := a.snapshots.Prepare(ctx, key, parent)
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

// commit puts a staged layer onto its parent.
func (a *adoption) commit(ctx context.Context, layer Layer) error {
	a.mu.Lock()
	staged := a.staged[layer.ChainID]
	a.mu.Unlock()
	if staged.dir == "" {
		return nil // it was there
	}
	key := prefix + "final-" + layer.ChainID.Encoded()
	dir, err := a.prepare(ctx, key, layer.Parent.String())
	if err != nil {
		return err
	}
	if err := move(staged.dir, dir); err != nil {
		return errors.Join(err, a.remove(ctx, key))
	}
	if err := syncOut(dir, staged.copies); err != nil {
		return errors.Join(err, a.remove(ctx, key))
	}
	err = a.snapshots.Commit(ctx, layer.ChainID.String(), key, asUnpacked(layer.ChainID))
	if errdefs.IsAlreadyExists(err) {
		// Someone pulled the same layer at the same time.
		return errors.Join(a.remove(ctx, key), a.hold(ctx, layer.ChainID))
	}
	if err != nil {
		return errors.Join(err, a.remove(ctx, key))
	}
	return nil
}

// asUnpacked marks a snapshot as containerd does what it unpacks (core/unpack).
func asUnpacked(chain digest.Digest) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: chain.String()})
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

func (a *adoption) remove(ctx context.Context, key string) error {
	if err := a.snapshots.Remove(context.WithoutCancel(ctx), key); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	return nil
}

// discard removes the snapshots that layers were assembled in. One that stays goes with the lease.
func (a *adoption) discard(ctx context.Context) {
	for chain := range a.staged {
		_ = a.remove(ctx, prefix+chain.Encoded())
	}
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
	if _, err := store.Update(ctx, content.Info{Digest: desc.Digest, Labels: labels}, "labels."+label); err != nil {
		return fmt.Errorf("label blob %s: %w", desc.Digest, err)
	}
	return nil
}
