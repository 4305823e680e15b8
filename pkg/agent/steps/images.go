package steps

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images/adopt"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

type importMemo struct {
	Refs []string `json:"refs"`
	// Before are the image records that containerd had: CRI's records by ID are not labelled, so the undo tells them by this.
	Before []string `json:"before"`
	// Boot is the host's at that time.
	Boot string `json:"boot,omitempty"`
}

const imagesID = "images"

func importImages(h *node.Host) engine.Step {
	return step[importMemo]{
		id: imagesID, title: "Bring the images to containerd",
		record: func(ctx context.Context, _ engine.Report) (importMemo, error) {
			found, err := facts.Of(h)
			if err != nil {
				return importMemo{}, err
			}
			memo := importMemo{Boot: host.BootID()}
			err = docker.With(found.DockerSocket, func(d *docker.Client) error {
				containers, err := d.Containers(ctx)
				if err != nil {
					return err
				}
				have, err := d.Images(ctx)
				memo.Refs = desired.Images(h, containers, have, found.Facts.SandboxImage)
				return err
			})
			if err != nil {
				return importMemo{}, err
			}
			err = host.Within(ctx, pods.Silence, func(ctx context.Context) error {
				return containerd.With(found.ContainerdAddress, func(c *client.Client) error {
					memo.Before, err = imageNames(ctx, c)
					return err
				})
			})
			return memo, err
		},
		apply: func(ctx context.Context, memo importMemo, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			return pods.WhileAnswering(ctx, h, found, func(ctx context.Context) error {
				return docker.With(found.DockerSocket, func(d *docker.Client) error {
					return containerd.With(found.ContainerdAddress, func(c *client.Client) error {
						if err := undoLost(ctx, h, memo, c); err != nil {
							return err
						}
						return bringImages(ctx, h, found, memo.Refs, d, c, report)
					})
				})
			})
		},
		revert: func(ctx context.Context, memo importMemo, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			if err := pods.WakeContainerd(ctx, h, report); err != nil {
				return err
			}
			return containerd.With(found.ContainerdAddress, func(c *client.Client) error {
				return images.Undo(ctx, c, h.Spec.Run, memo.Before)
			})
		},
	}
}

// undoLost removes what an attempt brought that the end of the host interrupted: containerd has it in its records, and files of it may be
// lost, since all is written out in the end.
func undoLost(ctx context.Context, h *node.Host, memo importMemo, c *client.Client) error {
	if memo.Boot == host.BootID() {
		return nil
	}
	return images.Undo(ctx, c, h.Spec.Run, memo.Before)
}

// bringImages imports what Docker has of the wanted images, and proves it.
func bringImages(ctx context.Context, h *node.Host, found facts.Found, wanted []string, d *docker.Client, c *client.Client, report engine.Report) error {
	config, err := host.ReadFile(found.ContainerdConfig)
	if err != nil {
		return err
	}
	layout, err := desired.EffectiveContainerd(ctx, h, found, config)
	if err != nil {
		return err
	}
	progress := func(done, total int64, ref string) { report.Progress(ref, done, total, "images") }
	copied := func(id string, err error) {
		report.Progress(fmt.Sprintf("%s is copied instead of linked: %v", id, err), 0, 0, "")
	}
	refs := slices.Clone(wanted)
	skipped := func(ref string, err error) {
		refs = slices.DeleteFunc(refs, func(r string) bool { return r == ref })
		report.Warn(fmt.Sprintf("%s is for another architecture and stays with Docker alone: %v", ref, err))
	}
	info, err := d.Info(ctx)
	if err != nil {
		return err
	}
	root, temporary, err := found.Spaces(layout.Root)
	if err != nil {
		return err
	}
	kept := images.WithDockerRoot(found.Facts.DockerRoot)
	if info.ContainerdStore {
		kept, temporary = images.WithNamespace(info.Namespace), images.Space{}
	}
	if _, err := images.Import(ctx, d, c, wanted, progress, images.WithSnapshotter(layout.Snapshotter), images.WithSkipped(skipped),
		kept, images.WithRoot(root), images.WithTemporary(temporary), images.WithRun(h.Spec.Run), images.WithFallback(copied)); err != nil {
		return err
	}
	if err := provenByCRI(ctx, found, d, refs); err != nil {
		return err
	}
	if err := images.Pin(ctx, c, found.Facts.SandboxImage); err != nil {
		return err
	}
	said, err := verifyImages(ctx, h, found, info, layout.Snapshotter, d, c, refs, report)
	if err != nil {
		return err
	}
	report.Progress(fmt.Sprintf("%d images%s", len(refs), said), int64(len(refs)), int64(len(refs)), "images")
	return nil
}

// provenByCRI asks for each image as the kubelet will, by every name that Docker had. CRI learns of records by events, so it may take
// a moment.
func provenByCRI(ctx context.Context, found facts.Found, d *docker.Client, refs []string) error {
	return host.Within(ctx, time.Minute, func(ctx context.Context) error {
		return cri.With(ctx, found.Facts.NewEndpoint, func(c *cri.Client) error { return findAll(ctx, c, d, refs) })
	})
}

func findAll(ctx context.Context, c *cri.Client, d *docker.Client, refs []string) error {
	for _, ref := range refs {
		image, err := d.Image(ctx, ref)
		if docker.IsNotFound(err) {
			continue // not pulled yet
		}
		if err != nil {
			return err
		}
		names := slices.Concat(image.RepoTags, image.RepoDigests)
		if !strings.HasPrefix(ref, "sha256:") { // an ID of Docker's containerd store is none of CRI's
			names = append(names, ref)
		}
		for _, name := range names {
			err := host.Poll(ctx, 100*time.Millisecond, func(ctx context.Context) error {
				there, err := c.HasImage(ctx, name)
				if err == nil && !there {
					err = fmt.Errorf("containerd's CRI does not find the image %s", name)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// verifyImages proves what was adopted by its content, where that was asked for, and returns what is to be said of it.
func verifyImages(ctx context.Context, h *node.Host, found facts.Found, info docker.Info, snapshotter string, d *docker.Client, c *client.Client, refs []string, report engine.Report) (string, error) {
	if !h.Spec.VerifyImages {
		return "", nil
	}
	verify := func(progress func(done, total int64, ref string)) (int, error) {
		return images.Verify(ctx, d, c, found.Facts.DockerRoot, refs, progress)
	}
	switch {
	case info.ContainerdStore:
		verify = func(progress func(done, total int64, ref string)) (int, error) {
			return images.VerifyShared(ctx, d, c, info.Namespace, refs, progress)
		}
	case images.Adoptable(found.Facts.DockerRoot, found.Facts.DockerRoot, cmp.Or(snapshotter, adopt.Snapshotter)) == nil:
		verify = nil
	}
	layers := 0
	if verify != nil {
		var err error
		if layers, err = verify(func(done, total int64, ref string) { report.Progress("verified "+ref, done, total, "images") }); err != nil {
			return "", fmt.Errorf("%w; where Docker's own layer is damaged, too, as it is with hard links, pull that image again", err)
		}
	}
	if layers == 0 {
		return ", whose layers containerd checked when it unpacked them", nil
	}
	return fmt.Sprintf(", %d layers verified", layers), nil
}

func imageNames(ctx context.Context, c *client.Client) ([]string, error) {
	list, err := c.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containerd's images: %w", err)
	}
	names := []string{}
	for _, image := range list {
		names = append(names, image.Name)
	}
	return names, nil
}
