package images

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/client"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images/adopt"
)

// Verify proves the files of all layers of refs in containerd by their content (adopt.Verifier), and returns how many layers these were.
// It is for a node where Docker has overlay2 below dockerRoot; what came to containerd by a stream was checked when it was unpacked.
// report is called as Import does.
func Verify(ctx context.Context, d Source, c *client.Client, dockerRoot string, refs []string, report func(done, total int64, ref string)) (layers int, err error) {
	store, err := adopt.Open(dockerRoot)
	if err != nil {
		return 0, err
	}
	defer store.Close()
	verifier := adopt.NewVerifier(c, store)
	err = verifyEach(ctx, d, c, refs, report, func(ctx context.Context, found docker.Image) error {
		image, err := store.Image(found.ID)
		if err != nil {
			return err
		}
		return verifier.Verify(ctx, image)
	})
	return verifier.Layers(), err
}

// VerifyShared is Verify for images that were brought from Docker's namespace (adopt.SharedVerifier). Images that are not there were
// streamed, and are passed over.
func VerifyShared(ctx context.Context, d Source, c *client.Client, namespace string, refs []string, report func(done, total int64, ref string)) (layers int, err error) {
	inside := adopt.OpenNamespace(c, namespace)
	defer inside.Close()
	there, err := inside.IDs(ctx)
	if err != nil {
		return 0, err
	}
	verifier := adopt.NewSharedVerifier(c)
	err = verifyEach(ctx, d, c, refs, report, func(ctx context.Context, found docker.Image) error {
		if !there[found.ID] {
			return nil
		}
		image, err := inside.Image(ctx, found.ID)
		if err != nil {
			return err
		}
		return verifier.Verify(ctx, image)
	})
	return verifier.Layers(), err
}

// verifyEach calls verify, under a lease, for each of refs that Docker has.
func verifyEach(ctx context.Context, d Source, c *client.Client, refs []string, report func(done, total int64, ref string), verify func(context.Context, docker.Image) error) error {
	return underLease(ctx, c, func(ctx context.Context) error {
		for n, ref := range refs {
			found, err := d.Image(ctx, ref)
			if err != nil && !docker.IsNotFound(err) {
				return err
			}
			if err == nil {
				if err := verify(ctx, found); err != nil {
					return fmt.Errorf("verify image %s: %w", ref, err)
				}
			}
			report(int64(n+1), int64(len(refs)), ref)
		}
		return nil
	})
}
