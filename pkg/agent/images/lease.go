package images

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// leaseID names the one lease of this package: one agent works on a node at a time.
const (
	leaseID   = "kubectl-runtime-images"
	leaseTime = 24 * time.Hour
)

// underLease calls do with a context that carries the lease: until a record refers to what was written, only that keeps it. What an
// interrupted run left goes with that run's.
func underLease(ctx context.Context, c *client.Client, do func(ctx context.Context) error) error {
	if err := dropLease(ctx, c); err != nil {
		return err
	}
	lease, err := c.LeasesService().Create(ctx, leases.WithID(leaseID), leases.WithExpiration(leaseTime))
	if err != nil {
		return fmt.Errorf("create lease: %w", err)
	}
	if err := do(leases.WithLease(ctx, lease.ID)); err != nil {
		cleanup, cancel := host.Outlive(ctx, cleanupTimeout)
		defer cancel()
		_ = dropLease(cleanup, c) // else the undo does it, or the next attempt
		return err
	}
	return dropLease(ctx, c)
}

// cleanupTimeout bounds what is done after a failure, whatever became of the caller's context.
const cleanupTimeout = 10 * time.Second

// dropLease ends the lease and waits until what it alone kept is collected. That there is none is fine.
func dropLease(ctx context.Context, c *client.Client) error {
	err := c.LeasesService().Delete(ctx, leases.Lease{ID: leaseID}, leases.SynchronousDelete)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("end the lease on images: %w", err)
	}
	return nil
}
