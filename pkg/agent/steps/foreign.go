package steps

import (
	"context"
	"slices"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// foreign names the running containers that Kubernetes does not manage, sorted.
func foreign(containers []docker.Container) []string {
	var names []string
	for _, c := range containers {
		if c.Running && !c.Kubernetes() {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names
}

func refuseForeign(names []string) error {
	if len(names) == 0 {
		return nil
	}
	return node.Refuse("stop them, or leave Docker running for them with --keep-docker",
		"Docker runs %d container(s) that Kubernetes does not manage: %s", len(names), strings.Join(names, ", "))
}

// refuseSwarm refuses to take a manager from a Docker Swarm: without a majority of them the others can change nothing either.
func refuseSwarm(info docker.Info) error {
	if !info.SwarmManager {
		return nil
	}
	return node.Refuse("take the node out with docker swarm leave, or leave Docker running for it with --keep-docker",
		"Docker is a manager of a Docker Swarm")
}

// asleep names the containers that Kubernetes does not manage and that do not run now, sorted: what is started now and then, or with
// Docker, is not started any more.
func asleep(containers []docker.Container) []string {
	var names []string
	for _, c := range containers {
		if !c.Running && !c.Kubernetes() {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names
}

// lookForForeign refuses what would end with Docker, and warns of what would not be started any more.
func (i *inspection) lookForForeign(context.Context) error {
	i.Facts.ForeignContainers = foreign(i.containers)
	if i.h.Spec.KeepDocker {
		return nil
	}
	if err := refuseForeign(i.Facts.ForeignContainers); err != nil {
		return err
	}
	if names := asleep(i.containers); len(names) > 0 {
		shown := strings.Join(names[:min(len(names), maxShown)], ", ")
		if len(names) > maxShown {
			shown += ", ..."
		}
		i.warn("Docker holds %d container(s) that Kubernetes does not manage and that do not run now; nothing starts them while the node is on containerd, unless it is switched with --keep-docker: %s",
			len(names), shown)
	}
	return nil
}

// lookForSwarm refuses what would end with Docker, and warns of what does without it.
func (i *inspection) lookForSwarm(context.Context) error {
	if i.h.Spec.KeepDocker {
		return nil
	}
	if err := refuseSwarm(i.info); err != nil {
		return err
	}
	if i.info.Swarm {
		i.warn("Docker is a member of a Docker Swarm, which loses it while the node is on containerd")
	}
	return nil
}

// maxShown bounds the names in one warning.
const maxShown = 10

// lookForForeign looks again, when nothing of the cutover is done yet, for containers that went down with Docker: prepare looked
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
		containers, err := listContainers(ctx, d)
		if err != nil {
			return err
		}
		return refuseForeign(foreign(containers))
	})
}
