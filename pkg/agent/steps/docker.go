package steps

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

// dockerPods stops Docker's pods.
func dockerPods(h *node.Host) engine.Step {
	return step[nothing]{
		id: "docker-pods", title: "Stop Docker's pods", record: recordNothing,
		apply: func(ctx context.Context, _ nothing, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			if err := wakeDocker(ctx, h, found); err != nil {
				return err
			}
			return pods.StopDockers(ctx, found, report)
		},
		// The kubelet starts its pods again.
	}
}

// wakeDocker starts Docker where a reboot came in between; normally it runs.
func wakeDocker(ctx context.Context, h *node.Host, found facts.Found) error {
	units := []string{"docker.service"}
	if !found.Dockershim() {
		units = append(units, node.CriDockerUnits[1], node.CriDockerUnits[3])
	}
	for _, unit := range units {
		state, err := h.Systemd.State(ctx, unit)
		if err != nil {
			return err
		}
		if state.Exists() && state.Active != "active" {
			if err := h.Systemd.Start(ctx, unit); err != nil {
				return err
			}
		}
	}
	return nil
}

const dockerStopID = "docker-stop"

// whileServing returns the units with those as running that ran when the node was inspected. After a reboot in between, systemd may not have started
// them yet, and the way back would leave them down.
func whileServing(h *node.Host, units []host.UnitState) []host.UnitState {
	found, err := facts.Of(h)
	if err != nil {
		return units
	}
	for n, unit := range units {
		if slices.Contains(found.Running, unit.Name) && !unit.Running() {
			units[n].Active = "active"
		}
	}
	return units
}

// dockerStop stops Docker for good; with --keep-docker only cri-dockerd.
func dockerStop(h *node.Host) engine.Step {
	return step[[]host.UnitState]{
		id: dockerStopID, title: "Stop Docker",
		record: func(ctx context.Context, _ engine.Report) ([]host.UnitState, error) {
			units, err := node.UnitsToStop(ctx, h)
			return whileServing(h, units), err
		},
		files: func(ctx context.Context) ([]desired.File, error) { return desired.DockerHolds(ctx, h) },
		apply: func(ctx context.Context, units []host.UnitState, report engine.Report) error {
			links := map[string]string{}
			for _, unit := range units {
				maps.Copy(links, unit.Links)
			}
			if err := h.Systemd.RemoveLinks(links); err != nil {
				return err
			}
			if err := h.Systemd.Hold(ctx, desired.HoldDocker, node.NamesOf(units)...); err != nil {
				return err
			}
			// The node is out of service: one call for all units.
			names := node.NamesOf(units)
			if len(names) > 0 {
				report.Progress("stop "+strings.Join(names, ", "), 0, 0, "")
				if err := h.Systemd.Stop(ctx, names...); err != nil {
					return err
				}
			}
			if err := afterDockerStop(ctx, h, units); err != nil {
				return err
			}
			if slices.Contains(node.NamesOf(units), node.DockerUnit) {
				found, err := facts.Of(h)
				if err != nil {
					return err
				}
				if err := pods.EndDockerShims(ctx, found.Facts.DockerRoot); err != nil {
					return err
				}
			}
			linkSocket(h, report)
			report.Progress("stopped and disabled", 0, 0, "")
			return nil
		},
		revertible: func(ctx context.Context, units []host.UnitState) error { return dockerThere(ctx, h, units) },
		revert: func(ctx context.Context, units []host.UnitState, report engine.Report) error {
			if err := pods.WakeContainerd(ctx, h, report); err != nil {
				report.Warn(err.Error()) // Docker may run on another one
			}
			if err := unlinkSocket(); err != nil {
				return err
			}
			if err := clearDockerSockets(h); err != nil {
				report.Warn(err.Error()) // the unit's own failure counts
			}
			errs := []error{h.Systemd.RestoreLinks(units...)} // before Unhold, which has systemd read its files
			// Sockets were stopped first and come back first: docker.service requires its own. cri-dockerd needs Docker.
			if err := h.Systemd.Unhold(ctx, units...); err != nil {
				return errors.Join(append(errs, err)...)
			}
			for _, names := range [][]string{node.DockerUnits, node.CriDockerUnits} {
				for _, unit := range units {
					if slices.Contains(names, unit.Name) {
						errs = append(errs, h.Systemd.Restore(ctx, unit))
					}
				}
			}
			return errors.Join(errs...)
		},
	}
}

// clearDockerSockets makes room for the sockets that Docker and cri-dockerd are about to listen at: a log agent that mounts one of them
// has left a directory there.
func clearDockerSockets(h *node.Host) error {
	found, err := facts.Of(h)
	if err != nil {
		return err
	}
	var errs []error
	for _, socket := range []string{docker.DefaultSocket, found.DockerSocket, found.Facts.OldEndpoint} {
		if path, ok := strings.CutPrefix(socket, "unix://"); ok {
			errs = append(errs, host.ClearSocket(path))
		}
	}
	return errors.Join(errs...)
}

// afterDockerStop looks again: a socket could have started its service in between, and Docker's unit may have been what pulled
// containerd up.
func afterDockerStop(ctx context.Context, h *node.Host, units []host.UnitState) error {
	for _, unit := range units {
		now, err := h.Systemd.State(ctx, unit.Name)
		if err != nil {
			return err
		}
		if now.Running() {
			return fmt.Errorf("stop Docker: %s is %s again", unit.Name, now.Active)
		}
	}
	containerd, err := h.Systemd.State(ctx, node.ContainerdUnit)
	if err != nil || containerd.Running() {
		return err
	}
	return h.Systemd.Start(ctx, node.ContainerdUnit)
}
