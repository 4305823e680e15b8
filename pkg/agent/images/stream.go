package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
)

func (i *importer) stream(ctx context.Context, image docker.Image) (*ocispec.Descriptor, error) {
	target, err := i.load(ctx, image)
	if err != nil {
		return nil, err
	}
	return target, i.into.unpack(ctx, *target)
}

// load streams the image into the content store. It is saved by ID: then the stream holds this one image and no names, which
// are given by record.
func (i *importer) load(ctx context.Context, image docker.Image) (*ocispec.Descriptor, error) {
	stream, err := i.source.Save(ctx, image.ID)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	store := i.into.client.ContentStore()
	wrapper, err := archive.ImportIndex(ctx, store, stream)
	if err != nil {
		return nil, fmt.Errorf("read what Docker saved: %w", err)
	}
	target, err := onlyManifest(ctx, store, wrapper)
	if err != nil {
		return nil, err
	}
	// Labels make the garbage collector keep what the manifest refers to. Docker's containerd store leaves out the platforms
	// it does not have.
	handler := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := images.Children(ctx, store, desc)
		if errdefs.IsNotFound(err) {
			return nil, images.ErrSkipDesc
		}
		return children, err
	})
	labelled := images.SetChildrenLabels(store, images.FilterPlatforms(handler, platforms.Default()))
	if err := images.WalkNotEmpty(ctx, labelled, target); err != nil {
		return nil, fmt.Errorf("read what Docker saved: %w", err)
	}
	if err := i.into.matches(ctx, target, image.ID); err != nil {
		return nil, err
	}
	if !i.into.complete(ctx, target) {
		return nil, errors.New("read what Docker saved: layers are missing")
	}
	return &target, nil
}

// onlyManifest returns the one image that an archive's index refers to, without the annotations that name it.
func onlyManifest(ctx context.Context, store content.Provider, wrapper ocispec.Descriptor) (ocispec.Descriptor, error) {
	data, err := content.ReadBlob(ctx, store, wrapper)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read what Docker saved: %w", err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read what Docker saved: %w", err)
	}
	digests := map[digest.Digest]bool{}
	for _, manifest := range index.Manifests {
		digests[manifest.Digest] = true
	}
	if len(digests) != 1 {
		return ocispec.Descriptor{}, fmt.Errorf("read what Docker saved: %d images instead of one", len(digests))
	}
	target := index.Manifests[0]
	target.Annotations = nil
	return target, nil
}
