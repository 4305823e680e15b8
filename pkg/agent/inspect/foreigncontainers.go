package inspect

import (
	"context"
	"slices"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var foreignCheck = check{id: protocol.CheckForeign, warning: protocol.CheckDockerUse, needs: []string{protocol.CheckDocker}, run: checkForeign}

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

// RefuseForeign refuses running containers that Kubernetes does not manage: they would go down with Docker.
func RefuseForeign(containers []docker.Container) error { return refuseNamed(foreign(containers)) }

func refuseNamed(names []string) error {
	if len(names) == 0 {
		return nil
	}
	return node.Refuse("stop them, or leave Docker running for them with --keep-docker",
		"Docker runs %d container(s) that Kubernetes does not manage: %s", len(names), strings.Join(names, ", "))
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

// checkForeign refuses what would end with Docker, and warns of what would not be started any more.
func checkForeign(_ context.Context, i *inspection) error {
	i.Facts.ForeignContainers = foreign(i.containers)
	if i.h.Spec.KeepDocker {
		return nil
	}
	if err := refuseNamed(i.Facts.ForeignContainers); err != nil {
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

// maxShown bounds the names in one warning.
const maxShown = 10
