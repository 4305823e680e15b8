package images

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Undo removes what the run with this name added, also if it was interrupted: its records, unless someone has moved them to another
// image since, and CRI's records by ID that stood beside them, unless they are among before or the image has another name by now.
// Images that were pulled meanwhile stay. What a process asked for that was killed, containerd may do only now: Undo looks again until
// there is nothing.
func Undo(ctx context.Context, c *client.Client, run string, before []string) error {
	for {
		if err := dropLease(ctx, c); err != nil {
			return err
		}
		list, err := settled(ctx, c, run)
		if err != nil {
			return fmt.Errorf("list containerd's images: %w", err)
		}
		names := ofRun(list, run, before)
		if err := Remove(ctx, c, names); err != nil || len(names) == 0 {
			return err
		}
	}
}

// CRI marks each record some time after it was made, and makes it once more, as its own, if it was removed before that (containerd,
// pkg/cri/store/image and server/image_pull.go, createImageReference).
const (
	criLabel   = "io.cri-containerd.image"
	settleTime = 2 * time.Second
)

// settled lists the records once CRI has marked those of the run, or after settleTime: CRI may be disabled.
func settled(ctx context.Context, c *client.Client, run string) ([]images.Image, error) {
	for end := time.Now().Add(settleTime); ; {
		list, err := c.ImageService().List(ctx)
		unseen := func(i images.Image) bool { return i.Labels[runLabel] == run && i.Labels[criLabel] == "" }
		if err != nil || !slices.ContainsFunc(list, unseen) || time.Now().After(end) {
			return list, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func ofRun(list []images.Image, run string, before []string) (names []string) {
	// Whether the image with this target was brought by the run, and has no other name.
	gone := map[digest.Digest]bool{}
	var byID []images.Image
	for _, image := range list {
		target := image.Target.Digest
		switch {
		case image.Labels[runLabel] == run && image.Labels[targetLabel] == target.String():
			names = append(names, image.Name)
			if _, seen := gone[target]; !seen {
				gone[target] = true
			}
		case strings.HasPrefix(image.Name, "sha256:") && !slices.Contains(before, image.Name):
			byID = append(byID, image)
		default:
			gone[target] = false
		}
	}
	for _, image := range byID {
		if gone[image.Target.Digest] {
			names = append(names, image.Name)
		}
	}
	return names
}

// Remove deletes image records, and waits until what was stored for them alone is gone, too. Names that do not exist are fine.
func Remove(ctx context.Context, c *client.Client, names []string) error {
	var errs []error
	for _, name := range names {
		if err := c.ImageService().Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove image record %s: %w", name, err))
		}
	}
	// The end of a lease starts the garbage collector and waits for it, also when all records were gone already.
	lease, err := c.LeasesService().Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err == nil {
		err = c.LeasesService().Delete(ctx, lease, leases.SynchronousDelete)
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("collect the garbage of removed images: %w", err))
	}
	return errors.Join(errs...)
}
