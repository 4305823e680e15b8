package inspect

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/client"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var spaceCheck = check{id: protocol.CheckSpace, needs: []string{protocol.CheckDocker, protocol.CheckContainerd}, run: checkSpace}

// spareCheck looks for the space that the host unit wants to have free on each file system that it writes to, before a phase begins.
var spareCheck = check{id: protocol.CheckSpace, run: func(context.Context, *inspection) error {
	return host.NewSpare(host.Existing(host.Dir), "/etc", "/var/lib/kubelet").Enough()
}}

func checkSpace(ctx context.Context, i *inspection) error {
	var wanted []docker.Image
	refs := desired.Images(i.h, i.containers, i.images, i.Facts.SandboxImage)
	err := docker.With(i.DockerSocket, func(d *docker.Client) error {
		for _, ref := range refs {
			image, err := d.Image(ctx, ref)
			if docker.IsNotFound(err) {
				continue // a pod's image that was not pulled yet
			}
			if err != nil {
				return err
			}
			// Docker's containerd store tells the unpacked size in this list only.
			for _, listed := range i.images {
				if listed.ID == image.ID {
					image.Size = max(image.Size, listed.Size)
				}
			}
			if !slices.ContainsFunc(wanted, func(have docker.Image) bool { return have.ID == image.ID }) {
				wanted = append(wanted, image)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	root, temporary, err := i.Spaces(i.layout.Root)
	if err != nil {
		return err
	}
	linkable := linkable(ctx, i, root.Dir)
	demands := []images.Demand{{Space: root, Bytes: images.Need(wanted, linkable)}}
	if !i.info.ContainerdStore {
		demands = append(demands, images.Demand{Space: temporary, Bytes: images.NeedTemporary(wanted, linkable)})
	}
	free, err := images.Free(root.Dir)
	if err != nil {
		return err
	}
	i.note(protocol.CheckDisk, "%d images need about %d MiB in %s, and %d MiB are free", len(wanted), demands[0].Bytes>>20, i.layout.Root, free>>20)
	if err := images.CheckSpace(demands...); err != nil {
		return node.Refuse("free some, for example with docker image prune", "there is not enough space for the images: %v", err)
	}
	return nil
}

// linkable tells which images probably need hardly any space (images.Need). Whatever keeps it from knowing, keeps them from being linked.
func linkable(ctx context.Context, i *inspection, root string) func(id string) bool {
	if !i.info.ContainerdStore {
		return images.Adoptable(i.Facts.DockerRoot, root, i.layout.Snapshotter)
	}
	var there func(id string) bool
	_ = host.Within(ctx, 10*time.Second, func(ctx context.Context) error {
		return containerd.With(i.ContainerdAddress, func(c *client.Client) (err error) {
			there, err = images.Shareable(ctx, c, i.info.Namespace, i.layout.Snapshotter)
			return err
		})
	})
	return there
}
