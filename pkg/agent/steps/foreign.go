package steps

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/inspect"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

// refuseForeignNow looks again, when nothing of the cutover is done yet, for containers that went down with Docker: prepare looked
// before the drain, which may have taken hours.
func refuseForeignNow(ctx context.Context, h *node.Host) error {
	if h.Spec.KeepDocker {
		return nil
	}
	found, err := facts.Of(h)
	if err != nil {
		return err
	}
	return docker.With(found.DockerSocket, func(d *docker.Client) error {
		containers, err := pods.DockerContainers(ctx, d)
		if err != nil {
			return err
		}
		return inspect.RefuseForeign(containers)
	})
}
