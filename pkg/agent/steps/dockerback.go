package steps

import (
	"context"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

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
