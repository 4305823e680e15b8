package images

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"

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
	if err := dropLease(ctx, c); err != nil {
		return 0, err
	}
	lease, err := c.LeasesService().Create(ctx, leases.WithID(leaseID), leases.WithExpiration(leaseTime))
	if err != nil {
		return 0, fmt.Errorf("create lease: %w", err)
	}
	defer func() {
		if derr := dropLease(context.WithoutCancel(ctx), c); err == nil {
			err = derr
		}
	}()
	ctx = leases.WithLease(ctx, lease.ID)
	verifier := adopt.NewVerifier(c, store)
	for n, ref := range refs {
		found, err := d.Image(ctx, ref)
		if err != nil && !docker.IsNotFound(err) {
			return verifier.Layers(), err
		}
		if err == nil {
			image, err := store.Image(found.ID)
			if err != nil {
				return verifier.Layers(), fmt.Errorf("verify image %s: %w", ref, err)
			}
			if err := verifier.Verify(ctx, image); err != nil {
				return verifier.Layers(), err
			}
		}
		report(int64(n+1), int64(len(refs)), ref)
	}
	return verifier.Layers(), nil
}
