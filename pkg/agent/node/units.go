package node

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// The services of the two runtimes.
const (
	DockerUnit     = "docker.service"
	ContainerdUnit = "containerd.service"
)

// The units of Docker and cri-dockerd, in the order in which they are stopped: sockets first, since they start their services
// again. Packages and kubespray name cri-dockerd's differently.
var (
	CriDockerUnits = []string{"cri-docker.socket", "cri-docker.service", "cri-dockerd.socket", "cri-dockerd.service"}
	DockerUnits    = []string{"docker.socket", "docker.service"}
)

// UnitsToStop are those of Docker's that the host has; with --keep-docker only cri-dockerd's.
func UnitsToStop(ctx context.Context, h *Host) ([]host.UnitState, error) {
	units := CriDockerUnits
	if !h.Spec.KeepDocker {
		units = append(units[:len(units):len(units)], DockerUnits...)
	}
	states := []host.UnitState{}
	for _, unit := range units {
		state, err := h.Systemd.State(ctx, unit)
		if err != nil {
			return nil, err
		}
		if state.Exists() {
			states = append(states, state)
		}
	}
	return states, nil
}

// NamesOf are the units' names.
func NamesOf(units []host.UnitState) []string {
	var names []string
	for _, unit := range units {
		names = append(names, unit.Name)
	}
	return names
}
