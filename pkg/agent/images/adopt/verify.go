package adopt

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Verifier proves layers by their content. It proves each layer once, whatever the number of images that have it.
type Verifier struct {
	client *client.Client
	store  *Store
	proven map[digest.Digest]bool
}

// NewVerifier returns a Verifier of containerd's snapshots against what Docker noted of each layer's archive.
func NewVerifier(c *client.Client, store *Store) *Verifier {
	return &Verifier{client: c, store: store, proven: map[digest.Digest]bool{}}
}

// Verify re-assembles the archive of each of the image's layers from the files of its snapshot in containerd and from Docker's notes
// on headers and order (tar-split), and compares its digest with the layer's diffID. It reads every file. ctx carries a lease, for
// the views that it makes.
func (v *Verifier) Verify(ctx context.Context, image Image) error {
	group, inner := errgroup.WithContext(ctx)
	// The node is in service, and this is for disk and processor only.
	group.SetLimit(max(1, min(runtime.NumCPU()/2, 4)))
	for _, layer := range image.Layers {
		if v.proven[layer.ChainID] {
			continue
		}
		group.Go(func() error {
			if err := v.layer(inner, layer); err != nil {
				return fmt.Errorf("verify layer %s of image %s: %w", layer.DiffID, image.ID, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, layer := range image.Layers {
		v.proven[layer.ChainID] = true
	}
	return nil
}

// Layers is how many layers were proven.
func (v *Verifier) Layers() int { return len(v.proven) }

func (v *Verifier) layer(ctx context.Context, layer Layer) (err error) {
	snapshots := v.client.SnapshotService(Snapshotter)
	key := prefix + "verify-" + layer.ChainID.Encoded()
	if err := snapshots.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	mounts, err := snapshots.View(ctx, key, layer.ChainID.String())
	if err != nil {
		return fmt.Errorf("view snapshot %s: %w", layer.ChainID, err)
	}
	defer func() { // where ctx has ended, the view goes with the lease
		if rerr := snapshots.Remove(ctx, key); err == nil && rerr != nil {
			err = fmt.Errorf("remove snapshot %s: %w", key, rerr)
		}
	}()
	dir, err := top(mounts)
	if err != nil {
		return err
	}
	got, err := assemble(ctx, filepath.Join(v.store.layerDir(layer.ChainID), "tar-split.json.gz"), dir)
	if err != nil {
		return err
	}
	if got != layer.DiffID {
		return fmt.Errorf("its files in containerd make the archive %s", got)
	}
	return nil
}

// top finds the directory of the topmost layer in the mounts of a view.
func top(mounts []mount.Mount) (string, error) {
	dirs, err := lowers(mounts)
	if err != nil {
		return "", err
	}
	return dirs[0], nil
}

// lowers finds the directories of all layers in the mounts of a view, the topmost first: what is bind-mounted where there is but one
// layer, else overlayfs's lower ones.
func lowers(mounts []mount.Mount) ([]string, error) {
	for _, m := range mounts {
		if m.Type == "bind" && filepath.IsAbs(m.Source) {
			return []string{m.Source}, nil
		}
		for _, option := range m.Options {
			if dirs, ok := strings.CutPrefix(option, "lowerdir="); ok && filepath.IsAbs(dirs) {
				return strings.Split(dirs, ":"), nil
			}
		}
	}
	return nil, fmt.Errorf("snapshots are mounted in an unknown way: %v", mounts)
}

// assemble returns the digest of the archive that notes, a file of tar-split, and the files below dir make.
func assemble(ctx context.Context, notes, dir string) (digest.Digest, error) {
	f, err := os.Open(notes)
	if err != nil {
		return "", fmt.Errorf("read Docker's notes on the layer: %w", err)
	}
	defer func() { _ = f.Close() }()
	unpacked, err := gzip.NewReader(f)
	if err != nil {
		return "", fmt.Errorf("read Docker's notes on the layer: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer func() { _ = root.Close() }()
	digester := digest.SHA256.Digester()
	files := &files{ctx: ctx, root: root}
	if err := asm.WriteOutputTarStream(files, storage.NewJSONUnpacker(unpacked), digester.Hash()); err != nil {
		return "", fmt.Errorf("re-assemble the layer: %w", err)
	}
	return digester.Digest(), nil
}

// files gives the layer's regular files by their names in the archive. It leaves the directory by no link, and takes paths that are
// too long for the kernel.
type files struct {
	ctx  context.Context //nolint:containedctx // the interface has none
	root *os.Root
}

func (f *files) Get(name string) (io.ReadCloser, error) {
	if err := f.ctx.Err(); err != nil {
		return nil, err
	}
	path := strings.TrimPrefix(filepath.Clean("/"+name), "/")
	file, err := f.root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a fifo would keep it waiting
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New(path + " is no regular file")
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}
