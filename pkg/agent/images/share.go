package images

import (
	"context"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images/adopt"
)

// WithNamespace shares the images that Docker keeps in this namespace of the same containerd, instead of streaming them
// (docker.Info.ContainerdStore). Those that are not there are streamed: Docker may run a containerd of its own.
func WithNamespace(name string) Option { return func(i *importer) { i.namespace = name } }

// sharing is what is known of an image before it is brought.
type sharing struct {
	// id is what CRI is to call it by: Docker's ID, or the config's digest where the image is found in Docker's namespace.
	id string
	// found is valid without err, which tells why the image cannot be shared.
	found adopt.Shared
	err   error
}

// look finds the image in Docker's namespace.
func (i *importer) look(ctx context.Context, image docker.Image) sharing {
	known := sharing{id: image.ID}
	if i.inside != nil {
		if known.found, known.err = i.inside.Image(ctx, image.ID); known.err == nil {
			known.id = known.found.ID.String()
		}
	}
	return known
}

// share brings an image from Docker's namespace: its blobs, and its layers by hard links where they are unpacked for the same
// snapshotter. Else containerd unpacks the blobs.
func (i *importer) share(ctx context.Context, image docker.Image, known sharing) (*ocispec.Descriptor, error) {
	if known.err != nil {
		return nil, known.err
	}
	if err := i.inside.Link(ctx, known.found, func(bytes int64) error { return i.room(bytes) }); err != nil {
		return nil, err
	}
	err := fmt.Errorf("%w for the snapshotter %s", adopt.ErrUnsuitable, i.into.snapshotter)
	if i.into.snapshotter == "" || i.into.snapshotter == adopt.Snapshotter {
		err = i.inside.Adopt(ctx, known.found)
	}
	if err == nil || ctx.Err() != nil {
		return &known.found.Target, err
	}
	i.why(image, fmt.Errorf("unpacked again: %w", err))
	i.streaming.Lock()
	defer i.streaming.Unlock()
	if err := i.enough(image); err != nil {
		return nil, err
	}
	return &known.found.Target, i.into.unpack(ctx, known.found.Target)
}
