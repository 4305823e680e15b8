package steps

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// dockerThere checks that what a way back starts has not been removed since: units, their programs, Docker's data.
func (h *Host) dockerThere(ctx context.Context, units []host.UnitState) error {
	const hint = "install what is missing again, or leave the node on containerd"
	for _, unit := range units {
		now, err := h.Systemd.State(ctx, unit.Name)
		if err != nil {
			return err
		}
		if !now.Exists() {
			return refuse(hint, "%s is not there any more", unit.Name)
		}
		p, err := h.Systemd.Show(ctx, unit.Name, "ExecStart")
		if err != nil {
			return err
		}
		if program := execPath(p["ExecStart"]); program != "" && host.Absent(program) {
			return refuse(hint, "%s, which %s starts, is not there any more", program, unit.Name)
		}
	}
	found, err := h.found()
	if err != nil {
		return err
	}
	if root := found.Facts.DockerRoot; root != "" && host.Absent(root) {
		return refuse("leave the node on containerd", "Docker's data in %s is not there any more", root)
	}
	return nil
}

// execPath is the program of a unit's ExecStart as `systemctl show` prints it: "{ path=/usr/bin/dockerd ; argv[]=… }".
func execPath(text string) string {
	_, rest, _ := strings.Cut(text, "path=")
	path, _, _ := strings.Cut(rest, " ;")
	return strings.TrimSpace(path)
}

// clearSockets removes folders that lie where the units' sockets listen: a pod that mounts Docker's socket as a hostPath without a type had
// its runtime make one after a reboot, and a socket unit cannot be started on it. One that holds anything stays, and is an error.
func (h *Host) clearSockets(ctx context.Context, units []host.UnitState, report engine.Report) error {
	for _, unit := range units {
		if !strings.HasSuffix(unit.Name, ".socket") {
			continue
		}
		p, err := h.Systemd.Show(ctx, unit.Name, "Listen")
		if err != nil {
			return err
		}
		path, _, _ := strings.Cut(p["Listen"], " ") // "/run/docker.sock (Stream)"
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
			continue
		}
		if err == nil {
			err = os.Remove(path)
		}
		if err != nil {
			return fmt.Errorf("make room for %s: there is a directory where it listens: %w", unit.Name, err)
		}
		report.Warn(path + " was a directory, which a pod's mount had made where " + unit.Name + " listens; it was empty and is removed. That pod does not see the socket before it is started anew")
	}
	return nil
}
