package images

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
)

// destination is containerd's namespace k8s.io, where images go: their content, snapshots and records.
type destination struct {
	client      *client.Client
	snapshotter string // containerd's default one if empty
	run         string // what records are labelled with
}

// recordNames are the names that CRI looks an image up by: normalised tags and digests, or its ID where there are none.
func recordNames(image docker.Image, id string) ([]string, error) {
	var names []string
	for _, familiar := range slices.Concat(image.RepoDigests, image.RepoTags) {
		name, err := reference.ParseDockerRef(familiar)
		if err != nil {
			return nil, fmt.Errorf("name %q: %w", familiar, err)
		}
		if !slices.Contains(names, name.String()) {
			names = append(names, name.String())
		}
	}
	if len(names) == 0 {
		names = []string{id}
	}
	return names, nil
}

// present looks for the image under its names. It returns what a record of it refers to, nil if there is none,
// and the names that are not records of it yet.
func (d destination) present(ctx context.Context, id string, names []string) (target *ocispec.Descriptor, missing []string, err error) {
	for _, name := range names {
		record, err := d.client.ImageService().Get(ctx, name)
		if errdefs.IsNotFound(err) {
			missing = append(missing, name)
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("get record %s: %w", name, err)
		}
		if d.matches(ctx, record.Target, id) != nil || !d.complete(ctx, record.Target) {
			missing = append(missing, name)
			continue
		}
		target = &record.Target
	}
	return target, missing, nil
}

// matches checks that target is the image that Docker calls id. Equal config digests mean equal layers; with Docker's
// containerd store the ID is the manifest's or the index's digest instead.
func (d destination) matches(ctx context.Context, target ocispec.Descriptor, id string) error {
	if target.Digest.String() == id {
		return nil
	}
	config, err := images.Config(ctx, d.client.ContentStore(), target, platforms.Default())
	if err != nil {
		return fmt.Errorf("read config of %s: %w", target.Digest, err)
	}
	if config.Digest.String() != id {
		return fmt.Errorf("what arrived has the ID %s, not Docker's %s", config.Digest, id)
	}
	return nil
}

// record makes the records names. containerd does not ask whether a digest in a name is the target's, and CRI finds an image
// that a pod pins by digest only by such a name. CRI adds a record named by the image's ID when it sees the first one; it counts
// as made here, since it would keep the image.
func (d destination) record(ctx context.Context, target ocispec.Descriptor, names []string) (added []string, err error) {
	if len(names) == 0 {
		return nil, nil
	}
	service := d.client.ImageService()
	config, err := images.Config(ctx, d.client.ContentStore(), target, platforms.Default())
	if err != nil {
		return nil, fmt.Errorf("read config of %s: %w", target.Digest, err)
	}
	byID := config.Digest.String()
	if _, err := service.Get(ctx, byID); errdefs.IsNotFound(err) {
		added = append(added, byID)
	} else if err != nil {
		return nil, fmt.Errorf("get record %s: %w", byID, err)
	}
	for _, name := range names {
		record := images.Image{Name: name, Target: target, Labels: d.labels(target)}
		_, err := service.Create(ctx, record)
		if errdefs.IsAlreadyExists(err) {
			if _, err := service.Update(ctx, record, "target"); err != nil {
				return added, fmt.Errorf("move record %s: %w", name, err)
			}
			continue
		}
		if err != nil {
			return added, fmt.Errorf("create record %s: %w", name, err)
		}
		if !slices.Contains(added, name) {
			added = append(added, name)
		}
	}
	return added, nil
}

// The labels by which Undo knows a record: who made it, and for what.
const (
	runLabel    = "kubectl-runtime.dev/run"
	targetLabel = "kubectl-runtime.dev/target"
)

func (d destination) labels(target ocispec.Descriptor) map[string]string {
	if d.run == "" {
		return nil
	}
	return map[string]string{runLabel: d.run, targetLabel: target.Digest.String()}
}

// pinnedLabel keeps an image from the kubelet's garbage collection; containerd before 1.6.38 ignores it.
const pinnedLabel = "io.cri-containerd.pinned"

// Pin exempts the image that ref names from the kubelet's garbage collection, under all its names.
func Pin(ctx context.Context, c *client.Client, ref string) error {
	name, err := reference.ParseDockerRef(ref)
	if err != nil {
		return fmt.Errorf("pin image %q: %w", ref, err)
	}
	record, err := c.ImageService().Get(ctx, name.String())
	if err != nil {
		return fmt.Errorf("pin image %s: %w", ref, err)
	}
	records, err := c.ImageService().List(ctx, "target.digest=="+record.Target.Digest.String())
	if err != nil {
		return fmt.Errorf("pin image %s: %w", ref, err)
	}
	for _, record := range records {
		update := images.Image{Name: record.Name, Labels: map[string]string{pinnedLabel: "pinned"}}
		if _, err := c.ImageService().Update(ctx, update, "labels."+pinnedLabel); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("pin image %s: %w", record.Name, err)
		}
	}
	return nil
}
