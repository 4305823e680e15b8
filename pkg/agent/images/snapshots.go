package images

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images/adopt"
)

// complete reports whether all of this platform's image is there: its layers' blobs, or, as with adopted images and with containerd's
// discard_unpacked_layers, its snapshots.
func (d destination) complete(ctx context.Context, target ocispec.Descriptor) bool {
	available, _, _, missing, err := images.Check(ctx, d.client.ContentStore(), target, platforms.Default())
	if err != nil || !available || len(missing) == 0 {
		return err == nil && available
	}
	unpacked, err := client.NewImage(d.client, images.Image{Target: target}).IsUnpacked(ctx, d.snapshotter)
	return err == nil && unpacked
}

// unpack makes the snapshots now, so that a full disk or a snapshotter that does not work shows before the node is drained.
func (d destination) unpack(ctx context.Context, target ocispec.Descriptor) error {
	image := client.NewImage(d.client, images.Image{Name: target.Digest.String(), Target: target})
	err := d.hold(ctx, image)
	if err == nil {
		err = image.Unpack(ctx, d.snapshotter)
	}
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

// hold adds the topmost of an image's snapshots that exists to the lease, which keeps those below it, too: containerd unpacks only what
// has no snapshot, and one that has may be garbage that is yet to be collected.
func (d destination) hold(ctx context.Context, image client.Image) error {
	diffIDs, err := image.RootFS(ctx)
	if err != nil {
		return err
	}
	snapshotter := cmp.Or(d.snapshotter, adopt.Snapshotter)
	service := d.client.SnapshotService(snapshotter)
	for _, chain := range slices.Backward(identity.ChainIDs(slices.Clone(diffIDs))) {
		_, err := service.Stat(ctx, chain.String())
		if err == nil {
			return adopt.Hold(ctx, d.client, snapshotter, chain)
		}
		if !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}
