package inspect

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var swarmCheck = check{id: protocol.CheckSwarm, warning: protocol.CheckDockerUse, needs: []string{protocol.CheckDocker}, run: checkSwarm}

// refuseSwarm refuses to take a manager from a Docker Swarm: without a majority of them the others can change nothing either.
func refuseSwarm(info docker.Info) error {
	if !info.SwarmManager {
		return nil
	}
	return node.Refuse("take the node out with docker swarm leave, or leave Docker running for it with --keep-docker",
		"Docker is a manager of a Docker Swarm")
}

// checkSwarm refuses what would end with Docker, and warns of what does without it.
func checkSwarm(_ context.Context, i *inspection) error {
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
