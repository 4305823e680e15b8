package images_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images/adopt"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// loadSharing gives the engine images that have all layers but their last ones in common.
func loadSharing(t *testing.T, e *agenttest.Engine, count int) (refs, ids []string) {
	t.Helper()
	return loadOnBase(t, e, "sharing", oddLayers(t), count)
}

// loadOnBase gives the engine images NAME:0, NAME:1 and so on, each with the layers of base and one of its own, with a file own-0, own-1 and so on.
func loadOnBase(t *testing.T, e *agenttest.Engine, name string, base [][]byte, count int) (refs, ids []string) {
	t.Helper()
	var tags [][]string
	var layers [][][]byte
	for n := range count {
		refs = append(refs, fmt.Sprintf("%s:%d", name, n))
		own := layerOf(t, []*tar.Header{{Typeflag: tar.TypeReg, Name: fmt.Sprintf("own-%d", n), Size: int64(n), Mode: 0o600}})
		tags, layers = append(tags, refs[n:]), append(layers, append(slices.Clone(base), own))
	}
	return refs, loadAll(t, e, runtime.GOARCH, tags, layers)
}

// TestAdoptedTogether adopts images at the same time that share layers: each layer is made once, and each image is whole.
func TestAdoptedTogether(t *testing.T) {
	engine := agenttest.StartEngineOn(t, "overlay2")
	refs, _ := loadSharing(t, engine, 8)
	d, err := docker.Dial(engine.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			adopted, imported := startOverlay(t, release), startOverlay(t, release)
			adoptAll(t, adopted, d, engine.Root, refs...)
			if _, err := images.Import(t.Context(), d, imported.client, refs, nil); err != nil {
				t.Fatal(err)
			}
			got, _ := adopted.inventory(t)
			want, _ := imported.inventory(t)
			if !slices.Equal(got, want) || len(got) != 3+len(refs) {
				t.Errorf("snapshots %v, want %v", got, want)
			}
			for _, ref := range refs {
				name := "docker.io/library/" + ref
				agenttest.Same(t, rootfs(t, adopted, name), rootfs(t, imported, name))
			}
			if err := images.Undo(t.Context(), adopted.client, "run", nil); err != nil {
				t.Fatal(err)
			}
			adopted.expectNothing(t)
		})
	}
}

// TestAdoptedTogetherWithARemovedOne has Docker remove one of two images, which are adopted at the same time, before its layers were read
// whole: the other one is adopted all the same.
func TestAdoptedTogetherWithARemovedOne(t *testing.T) {
	engine := agenttest.StartEngineOn(t, "overlay2")
	_, ids := loadSharing(t, engine, 2)
	store, err := adopt.Open(engine.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var both []adopt.Image
	for _, id := range ids {
		image, err := store.Image(id)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, image)
	}
	config := filepath.Join(engine.Root, "image/overlay2/imagedb/content/sha256", strings.TrimPrefix(ids[0], "sha256:"))
	if err := os.Rename(config, config+".removed"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Rename(config+".removed", config) })
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n := startOverlay(t, release)
			for range 5 {
				lease, err := n.client.LeasesService().Create(t.Context(), leases.WithRandomID())
				if err != nil {
					t.Fatal(err)
				}
				errs := adoptBoth(leases.WithLease(t.Context(), lease.ID), t, n, store, both)
				if !errors.Is(errs[0], adopt.ErrUnsuitable) || errs[1] != nil {
					t.Errorf("the removed one: %v; the other: %v", errs[0], errs[1])
				}
				if got, _ := n.inventory(t); len(got) < len(both[1].Layers) {
					t.Errorf("there are only the snapshots %v", got)
				}
				if err := n.client.LeasesService().Delete(t.Context(), lease, leases.SynchronousDelete); err != nil {
					t.Fatal(err)
				}
				n.expectNothing(t)
			}
		})
	}
}

func adoptBoth(ctx context.Context, t *testing.T, n node, store *adopt.Store, both []adopt.Image) (errs [2]error) {
	t.Helper()
	adopter, err := adopt.New(ctx, n.client, store, 0)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i, image := range both {
		group.Go(func() { _, errs[i] = adopter.Adopt(ctx, image) })
	}
	group.Wait()
	return errs
}
