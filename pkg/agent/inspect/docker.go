package inspect

import (
	"context"
	"fmt"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var dockerCheck = check{id: protocol.CheckDocker, warning: protocol.CheckCgroupDriver, needs: []string{protocol.CheckKubelet}, run: checkDocker}

func checkDocker(ctx context.Context, i *inspection) error {
	i.report.Progress("Docker", 0, 0, "")
	return docker.With(i.DockerSocket, func(d *docker.Client) error {
		info, err := d.Info(ctx)
		if err != nil {
			return err
		}
		i.Facts.DockerVersion, i.Facts.DockerRoot = info.Version, info.Root
		i.info = info
		settings := facts.ReadKernel(facts.ReadSysctl) // while Docker runs
		i.Kernel = &settings
		if info.CgroupDriver != i.Facts.CgroupDriver {
			i.warn("Docker's cgroup driver is %s, the kubelet's setting is %s: containerd is set up with the kubelet's", info.CgroupDriver, i.Facts.CgroupDriver)
		}
		if i.containers, err = d.Containers(ctx); err != nil {
			return err
		}
		if i.images, err = d.Images(ctx); err != nil {
			return err
		}
		return findSandboxImage(ctx, i, d)
	})
}

// findSandboxImage takes what pods run on today: the agent's own pod has a sandbox, too.
func findSandboxImage(ctx context.Context, i *inspection, d *docker.Client) error {
	for _, c := range i.containers {
		_, _, uid := c.Pod()
		if c.Sandbox() && (i.Facts.SandboxImage == "" || uid == i.h.Spec.Pod.UID) {
			i.Facts.SandboxImage = c.Image
		}
	}
	if i.Facts.SandboxImage == "" {
		i.Facts.SandboxImage, _ = i.setup.Flag("pod-infra-container-image")
	}
	if i.Facts.SandboxImage == "" {
		return node.Refuse("", "the sandbox (pause) image is unknown: Docker holds no pod, and the kubelet has no --pod-infra-container-image")
	}
	image, err := d.Image(ctx, i.Facts.SandboxImage)
	if err != nil {
		return fmt.Errorf("look for the sandbox image: %w", err)
	}
	if strings.HasPrefix(i.Facts.SandboxImage, "sha256:") {
		if len(image.RepoTags) == 0 {
			return node.Refuse("docker tag it on the node", "the sandbox image %s has no name that containerd could use", image.ID)
		}
		i.Facts.SandboxImage = image.RepoTags[0]
	}
	return nil
}
