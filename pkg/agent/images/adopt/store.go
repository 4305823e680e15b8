// Package adopt makes containerd images out of Docker's overlay2 layers by hard links, so that neither time nor disk goes into
// copies. It only reads Docker's data: what is linked is never written to, and its directories are made again. Package images
// calls it, and streams what cannot be adopted.
package adopt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrUnsuitable is why an image has to be brought in another way.
var ErrUnsuitable = errors.New("cannot be adopted")

// Store is Docker's image store on disk, for the storage driver overlay2.
type Store struct {
	root string
	links
}

// remapped is the data root's last element with userns-remap: all owners on disk are then shifted.
var remapped = regexp.MustCompile(`^[0-9]+\.[0-9]+$`)

// Open returns the store below root, Docker's data root, to be closed in the end. Without overlay2 layers, or with remapped users, it is ErrUnsuitable.
func Open(root string) (*Store, error) {
	if resolved, err := filepath.EvalSymlinks(root); err == nil && !remapped.MatchString(filepath.Base(root)) {
		root = resolved
	}
	if remapped.MatchString(filepath.Base(root)) {
		return nil, fmt.Errorf("docker's images in %s: %w: Docker remaps users", root, ErrUnsuitable)
	}
	for _, dir := range []string{"overlay2", "image/overlay2/layerdb/sha256", "image/overlay2/imagedb/content/sha256"} {
		if info, err := os.Stat(filepath.Join(root, dir)); err != nil || !info.IsDir() {
			return nil, fmt.Errorf("docker's images in %s: %w: there is no directory %s", root, ErrUnsuitable, dir)
		}
	}
	return &Store{root: root}, nil
}

// Image is one image as it lies on disk.
type Image struct {
	// Config is the config's JSON, byte by byte what ID is the digest of.
	Config []byte
	ID     digest.Digest
	// Layers go from the base up.
	Layers []Layer
}

// Layer is one layer of an image.
type Layer struct {
	DiffID, ChainID, Parent digest.Digest
	// CacheID names the layer's directory below overlay2.
	CacheID string
	// Size is that of the files in it, in bytes.
	Size int64
	// dir is where the files of a Namespace's layer lie.
	dir string
}

// Image reads the image with this ID. It checks the config's digest and that the layers are those that the config names.
func (s *Store) Image(id string) (Image, error) {
	dgst, err := digest.Parse(id)
	if err != nil || dgst.Algorithm() != digest.SHA256 {
		return Image{}, fmt.Errorf("read Docker's image %q: %w: not a SHA-256 ID", id, ErrUnsuitable)
	}
	data, err := os.ReadFile(s.configPath(dgst))
	if err != nil {
		return Image{}, unsuitable(fmt.Sprintf("read Docker's image %s", id), err)
	}
	if digest.FromBytes(data) != dgst {
		return Image{}, fmt.Errorf("read Docker's image %s: %w: its config does not have that digest", id, ErrUnsuitable)
	}
	var config ocispec.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return Image{}, fmt.Errorf("read Docker's image %s: %w: %w", id, ErrUnsuitable, err)
	}
	if len(config.RootFS.DiffIDs) == 0 {
		return Image{}, fmt.Errorf("read Docker's image %s: %w: it has no layers", id, ErrUnsuitable)
	}
	image := Image{Config: data, ID: dgst}
	for n := range config.RootFS.DiffIDs {
		if err := config.RootFS.DiffIDs[n].Validate(); err != nil {
			return Image{}, fmt.Errorf("read Docker's image %s: %w: layer %d: %w", id, ErrUnsuitable, n, err)
		}
	}
	var parent digest.Digest
	for n, diffID := range config.RootFS.DiffIDs {
		layer, err := s.layer(identity.ChainID(config.RootFS.DiffIDs[:n+1]))
		if err != nil {
			return Image{}, err
		}
		if layer.DiffID != diffID || layer.Parent != parent {
			return Image{}, fmt.Errorf("read Docker's layer %s: %w: it is %s on %q", layer.ChainID, ErrUnsuitable, layer.DiffID, layer.Parent)
		}
		image.Layers = append(image.Layers, layer)
		parent = layer.ChainID
	}
	return image, nil
}

func (s *Store) configPath(id digest.Digest) string {
	return filepath.Join(s.root, "image/overlay2/imagedb/content/sha256", id.Encoded())
}

// cacheID is what Docker calls a layer's directory: 64 hexadecimal digits, and "-init" for containers, which are not images.
var cacheID = regexp.MustCompile(`^[0-9a-z]{1,64}$`)

// layer reads what layer/filestore.go of Docker 17.06 to 29 wrote.
func (s *Store) layer(chain digest.Digest) (Layer, error) {
	dir := s.layerDir(chain)
	fail := func(err error) (Layer, error) {
		return Layer{}, unsuitable(fmt.Sprintf("read Docker's layer %s", chain), err)
	}
	read := func(name string) (string, error) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		return strings.TrimSpace(string(data)), err
	}
	layer := Layer{ChainID: chain}
	var err error
	if layer.CacheID, err = read("cache-id"); err != nil {
		return fail(err)
	}
	if !cacheID.MatchString(layer.CacheID) {
		return fail(fmt.Errorf("cache-id is %q", layer.CacheID))
	}
	diff, err := read("diff")
	if err != nil {
		return fail(err)
	}
	layer.DiffID = digest.Digest(diff)
	parent, err := read("parent")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	layer.Parent = digest.Digest(parent)
	size, err := read("size")
	if err != nil {
		return fail(err)
	}
	if layer.Size, err = strconv.ParseInt(size, 10, 64); err != nil || layer.Size < 0 {
		return fail(fmt.Errorf("size is %q", size))
	}
	return layer, nil
}

// layerDir is where Docker keeps what it knows of a layer.
func (s *Store) layerDir(chain digest.Digest) string {
	return filepath.Join(s.root, "image/overlay2/layerdb/sha256", chain.Encoded())
}

// unsuitable makes err one that a stream of the image may still get around: whatever the store lacks, the engine may know better.
func unsuitable(what string, err error) error {
	return fmt.Errorf("%s: %w: %w", what, ErrUnsuitable, err)
}

// Dir is where the layer's files lie.
func (s *Store) Dir(layer Layer) string {
	return filepath.Join(s.root, "overlay2", layer.CacheID, "diff")
}

// Holds tells whether Docker still has the image with this very layer. It deletes an image's config before it touches layers, so what was
// read of the layer before Holds returned true was read whole.
func (s *Store) Holds(_ context.Context, id digest.Digest, layer Layer) bool {
	if _, err := os.Stat(s.configPath(id)); err != nil {
		return false
	}
	now, err := s.layer(layer.ChainID)
	return err == nil && now == layer
}
