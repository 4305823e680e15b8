package adopt

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// SharedVerifier proves images that were brought from a Namespace by their content. It proves each layer once.
type SharedVerifier struct {
	client *client.Client
	proven map[digest.Digest]bool
}

// NewSharedVerifier returns a verifier of blobs, and of the snapshots made of them.
func NewSharedVerifier(c *client.Client) *SharedVerifier {
	return &SharedVerifier{client: c, proven: map[digest.Digest]bool{}}
}

// Layers is how many layers were proven.
func (v *SharedVerifier) Layers() int { return len(v.proven) }

// Verify reads all blobs of the image and compares their digests, those of the unpacked layers with the diffIDs, and each file in them
// with that in the layer's snapshot, byte by byte. What the archives say of owners, modes and the like is not compared. ctx carries a lease.
func (v *SharedVerifier) Verify(ctx context.Context, image Shared) error {
	dirs, err := layerDirs(ctx, v.client.SnapshotService(Snapshotter), image.ID, image.Layers)
	if err != nil && !errdefs.IsNotFound(err) { // another snapshotter's were unpacked by containerd
		return fmt.Errorf("look for snapshots of image %s: %w", image.ID, err)
	}
	layers := image.blobs[len(image.blobs)-len(image.Layers):]
	for _, desc := range image.blobs[:len(image.blobs)-len(layers)] {
		if err := v.read(ctx, desc, func(io.Reader) error { return nil }); err != nil {
			return err
		}
	}
	var below stack
	defer func() { below.close() }()
	for at, layer := range image.Layers {
		if dir, ok := dirs[layer.ChainID]; ok {
			root, err := os.OpenRoot(dir)
			if err != nil {
				return err
			}
			below = append(below, root)
		}
		if v.proven[layer.ChainID] {
			continue
		}
		if err := v.read(ctx, layers[at], func(packed io.Reader) error { return below.compare(packed, layer.DiffID) }); err != nil {
			return fmt.Errorf("verify layer %s of image %s: %w", layer.DiffID, image.ID, err)
		}
		v.proven[layer.ChainID] = true
	}
	return nil
}

// read gives a blob's content to use, and compares its digest.
func (v *SharedVerifier) read(ctx context.Context, desc ocispec.Descriptor, use func(io.Reader) error) error {
	from, err := v.client.ContentStore().ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	digester := digest.SHA256.Digester()
	all := io.TeeReader(content.NewReader(from), digester.Hash())
	if err := use(all); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, all); err != nil {
		return fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	if got := digester.Digest(); got != desc.Digest {
		return fmt.Errorf("blob %s has the content of %s", desc.Digest, got)
	}
	return nil
}

// stack are the directories of layers, the base first.
type stack []*os.Root

func (s stack) close() {
	for _, root := range s {
		_ = root.Close()
	}
}

// compare reads a layer's archive and compares it with the topmost directory, if there is one.
func (s stack) compare(packed io.Reader, diffID digest.Digest) error {
	unpacked, err := compression.DecompressStream(packed)
	if err != nil {
		return err
	}
	defer func() { _ = unpacked.Close() }()
	digester := digest.SHA256.Digester()
	all := io.TeeReader(unpacked, digester.Hash())
	// A name may come again, and the last one counts.
	want := map[string]digest.Digest{}
	archive := tar.NewReader(all)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
		delete(want, name)
		if header.Typeflag != tar.TypeReg || strings.HasPrefix(path.Base(name), ".wh.") {
			continue
		}
		if want[name], err = digest.FromReader(archive); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, all); err != nil {
		return err
	}
	if got := digester.Digest(); got != diffID {
		return fmt.Errorf("it unpacks to %s", got)
	}
	if len(s) == 0 {
		return nil
	}
	for name, dgst := range want {
		got, err := s.digestOf(name)
		if err != nil {
			return fmt.Errorf("its file %s: %w", name, err)
		}
		if got != dgst {
			return fmt.Errorf("its file %s has another content in containerd", name)
		}
	}
	return nil
}

func (s stack) digestOf(name string) (digest.Digest, error) {
	dir, err := s.resolve(path.Dir(name))
	if err != nil {
		return "", err
	}
	f, err := s[len(s)-1].OpenFile(filepath.Join(dir, path.Base(name)), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(err, errors.New("is no regular file"))
	}
	return digest.FromReader(f)
}

// maxLinks is as in the kernel.
const maxLinks = 40

// resolve follows the links in a directory's path, which may be in any layer: who unpacks a layer follows them, too.
func (s stack) resolve(dir string) (string, error) {
	done := "."
	rest := strings.Split(dir, "/")
	for links := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		target := s.link(next)
		if target == "" {
			done = strings.TrimPrefix(path.Clean("/"+next), "/") // nothing is above the root
			if done == "" {
				done = "."
			}
			continue
		}
		if links++; links > maxLinks {
			return "", unix.ELOOP
		}
		if path.IsAbs(target) {
			done = "."
		}
		rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
	}
	return done, nil
}

// link returns where a link leads to; it is empty for what is none in the topmost layer that has it.
func (s stack) link(name string) string {
	for at := len(s) - 1; at >= 0; at-- {
		info, err := s[at].Lstat(name)
		if err != nil {
			continue
		}
		target := ""
		if info.Mode()&os.ModeSymlink != 0 {
			target, _ = s[at].Readlink(name)
		}
		return target
	}
	return ""
}
