package images

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images/adopt"
)

// Reserve is what is to stay free beside the images, in bytes.
const Reserve = 1 << 30

// Need estimates the bytes that Import writes below containerd's root for these images, too high where they share layers: each
// layer is kept as a blob and unpacked. Those that adoptable returns true for are linked: their directories are made anew, which took
// under 1 % in trials. A nil adoptable is for a node where nothing can be adopted.
func Need(list []docker.Image, adoptable func(id string) bool) int64 {
	var bytes int64
	for id, size := range sizes(list) {
		if adoptable != nil && adoptable(id) {
			bytes += size / 50
			continue
		}
		bytes += 2 * size
	}
	return bytes
}

// Adoptable returns a function that tells whether an image will probably be adopted by hard links: Docker has its layers in overlay2
// directories on containerd's file system. It is nil where none will be. root has to exist.
func Adoptable(dockerRoot, root, snapshotter string) func(id string) bool {
	store, err := adopt.Open(dockerRoot)
	if err != nil || snapshotter != adopt.Snapshotter {
		return nil
	}
	if !adopt.Linkable(filepath.Join(dockerRoot, "overlay2"), root) {
		return nil
	}
	return func(id string) bool {
		_, err := store.Image(id)
		return err == nil
	}
}

// Shareable is Adoptable where Docker keeps its images in a namespace of containerd: it tells whether an image's blobs and snapshots are
// there, so that no blob is copied. It is nil where none are, or where they are unpacked anew.
func Shareable(ctx context.Context, c *client.Client, namespace, snapshotter string) (func(id string) bool, error) {
	if snapshotter != adopt.Snapshotter {
		return nil, nil
	}
	ids, err := adopt.OpenNamespace(c, namespace).IDs(ctx)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	return func(id string) bool { return ids[id] }, nil
}

// unpackedBy is how much larger an image is unpacked than in a registry, and in Docker's containerd store, by a careful guess.
const unpackedBy = 3

// enough checks that the image can be streamed: blobs and unpacked layers.
func (i *importer) enough(image docker.Image) error {
	if i.namespace != "" {
		image.Size *= unpackedBy
	}
	return i.room(Need([]docker.Image{image}, nil))
}

// room checks that so many bytes can be written and some space is left.
func (i *importer) room(bytes int64) error {
	if i.root == "" {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(i.root, &fs); err != nil {
		return fmt.Errorf("look for space in %s: %w", i.root, err)
	}
	need := bytes + Reserve
	if free := int64(fs.Bavail) * fs.Bsize; free < need { //nolint:gosec // no file system is that large
		return fmt.Errorf("copying it needs %d MiB in %s, and %d MiB are free", need>>20, i.root, free>>20)
	}
	return nil
}

// NeedTemporary estimates the bytes that Docker writes below its own root while the largest of these images is saved.
func NeedTemporary(list []docker.Image) int64 {
	var largest int64
	for _, size := range sizes(list) {
		largest = max(largest, size)
	}
	return largest
}

// sizes counts each image once, whatever the number of its names.
func sizes(list []docker.Image) map[string]int64 {
	byID := map[string]int64{}
	for _, image := range list {
		byID[image.ID] = image.Size
	}
	return byID
}
