package steps

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

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
		changed: func(units []host.UnitState) []string {
			var paths []string
			for _, unit := range units {
				paths = append(paths, h.Systemd.HoldPath(unit.Name))
			}
			if !host.Absent(linkFile) {
				paths = append(paths, linkFile)
			}
			return paths
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

// A Docker that was started without --containerd runs a containerd of its own as its child, unless there is a file at containerd's usual
// address when it starts: then it takes that one, whoever runs it (moby 20.10 to 28, cmd/dockerd/daemon.go, systemContainerdRunning). It would lose sight
// of every container that it left running, the kubelet would start them a second time, and with that containerd they would all go down.
// So beside such a Docker the containerd of the kubelet's has another address. When Docker is stopped and held, a link takes the usual
// one, for what else looks there; it goes before Docker may start.
const (
	// linkFile has systemd-tmpfiles make the link at each boot, since /run is empty then.
	linkFile = "/etc/tmpfiles.d/kubectl-runtime-containerd.conf"
)

// linkSocket gives containerd its usual address, too. Nothing of the agent's depends on it.
func linkSocket(h *node.Host, report engine.Report) {
	found, err := facts.Of(h)
	if err != nil || found.ContainerdAddress != facts.ApartAddress || h.Spec.KeepDocker {
		return
	}
	target := filepath.Base(facts.ApartAddress)
	err = host.Replace(linkFile, []byte("# Written by kubectl-runtime: Docker may not see this while it runs a containerd of its own.\n"+
		"L "+containerd.DefaultAddress+" - - - - "+target+"\n"), 0o644)
	if err == nil {
		err = host.Link(containerd.DefaultAddress, target)
	}
	if err != nil {
		report.Warn("containerd cannot be reached at its usual address as well: " + err.Error())
	}
}

// unlinkSocket takes back what linkSocket did.
func unlinkSocket() error {
	if err := host.Remove(linkFile); err != nil {
		return err
	}
	return host.Unlink(containerd.DefaultAddress, filepath.Base(facts.ApartAddress))
}

// dockerThere checks that what a way back starts has not been removed since: units, their programs, Docker's data.
func dockerThere(ctx context.Context, h *node.Host, units []host.UnitState) error {
	const hint = "install what is missing again, or leave the node on containerd"
	for _, unit := range units {
		now, err := h.Systemd.State(ctx, unit.Name)
		if err != nil {
			return err
		}
		if !now.Exists() {
			return node.Refuse(hint, "%s is not there any more", unit.Name)
		}
		p, err := h.Systemd.Show(ctx, unit.Name, "ExecStart")
		if err != nil {
			return err
		}
		if program := execPath(p["ExecStart"]); program != "" && host.Absent(program) {
			return node.Refuse(hint, "%s, which %s starts, is not there any more", program, unit.Name)
		}
	}
	found, err := facts.Of(h)
	if err != nil {
		return err
	}
	if root := found.Facts.DockerRoot; root != "" && host.Absent(root) {
		return node.Refuse("leave the node on containerd", "Docker's data in %s is not there any more", root)
	}
	return nil
}

// execPath is the program of a unit's ExecStart as `systemctl show` prints it: "{ path=/usr/bin/dockerd ; argv[]=… }".
func execPath(text string) string {
	_, rest, _ := strings.Cut(text, "path=")
	path, _, _ := strings.Cut(rest, " ;")
	return strings.TrimSpace(path)
}
