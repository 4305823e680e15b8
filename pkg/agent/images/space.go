package images

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images/adopt"
)

// Reserve is what is to stay free beside the images at least, in bytes.
const Reserve = 1 << 30

// Need estimates the bytes that Import writes below containerd's root for these images, too high where they share layers: each
// layer is kept as a blob and unpacked. Those that adoptable returns true for are linked: their directories are made again, which took
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
// there, so that no blob is copied. It is nil where none are, or where they are unpacked again.
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

// Space is a directory that is written to.
type Space struct {
	Dir string
	// Keep is how many bytes have to stay free on its file system, and Why the reason; Reserve if it is less.
	Keep int64
	Why  string
}

// Demand is how many bytes are to be written to a directory.
type Demand struct {
	Space
	Bytes int64
}

// ErrNoSpace is returned where a file system has too little free space.
var ErrNoSpace = errors.New("not enough disk space")

// CheckSpace returns ErrNoSpace if the file systems of the directories, which have to exist, do not have so much free space.
func CheckSpace(demands ...Demand) error {
	byDevice := map[uint64]Demand{}
	var devices []uint64
	for _, d := range demands {
		var stat unix.Stat_t
		if err := unix.Stat(d.Dir, &stat); err != nil {
			return fmt.Errorf("look for space in %s: %w", d.Dir, err)
		}
		all, seen := byDevice[stat.Dev]
		if !seen {
			devices = append(devices, stat.Dev)
			all = Demand{Space: Space{Dir: d.Dir, Keep: Reserve}}
		}
		all.Bytes += d.Bytes
		if d.Keep > all.Keep {
			all.Keep, all.Why = d.Keep, d.Why
		}
		byDevice[stat.Dev] = all
	}
	for _, device := range devices {
		d := byDevice[device]
		free, err := Free(d.Dir)
		if err != nil {
			return err
		}
		if d.Bytes > 0 && free < d.Bytes+d.Keep {
			why := d.Why
			if why != "" {
				why = " (" + why + ")"
			}
			return fmt.Errorf("%w: %d MiB are needed in %s, %d MiB are free, and %d MiB of them have to stay free%s",
				ErrNoSpace, d.Bytes>>20, d.Dir, free>>20, d.Keep>>20, why)
		}
	}
	return nil
}

// Free is how many bytes the file system of a directory has free.
func Free(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("look for space in %s: %w", dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil //nolint:gosec // no file system is that large
}

// enough checks that the image can be streamed: blobs and unpacked layers, and what Docker writes meanwhile.
func (i *importer) enough(image docker.Image) error {
	if i.namespace != "" {
		image.Size *= unpackedBy
	}
	var temporary []Demand
	if i.temporary.Dir != "" {
		temporary = []Demand{{i.temporary, NeedTemporary([]docker.Image{image}, nil)}}
	}
	return i.room(Need([]docker.Image{image}, nil), temporary...)
}

// room checks that so many bytes can be written to containerd's root, and what else is to be written.
func (i *importer) room(bytes int64, more ...Demand) error {
	if i.root.Dir == "" {
		return nil
	}
	return CheckSpace(append([]Demand{{i.root, bytes}}, more...)...)
}

// NeedTemporary estimates the bytes that Docker writes to its own directory for temporary files while the largest of these images is saved:
// all of its layers (image/tarexport/save.go). Docker's containerd image store writes none. Those that adoptable returns true for are not saved.
func NeedTemporary(list []docker.Image, adoptable func(id string) bool) int64 {
	var largest int64
	for id, size := range sizes(list) {
		if adoptable == nil || !adoptable(id) {
			largest = max(largest, size)
		}
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
