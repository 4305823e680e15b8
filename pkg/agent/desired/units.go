package desired

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// HoldDocker is why Docker's units are held.
const HoldDocker = "this node's pods run on another runtime; Docker's data is kept."

// DockerHolds are the drop-ins that hold Docker's units, and the links to them that go.
func DockerHolds(ctx context.Context, h *node.Host) ([]File, error) {
	units, err := node.UnitsToStop(ctx, h)
	var files []File
	for _, unit := range units {
		path, text := h.Systemd.HoldFile(unit.Name, HoldDocker)
		file, err := NewFile(path, text, 0)
		if err != nil {
			return nil, err
		}
		files = append(append(files, file), Links(unit.Links, true)...)
	}
	return files, err
}

// BootLinks are the links that containerd needs to come up at boot without Docker: its packages' docker.service wants it, but is held.
func BootLinks(ctx context.Context, h *node.Host, was host.UnitState) (map[string]string, error) {
	p, err := h.Systemd.Show(ctx, node.ContainerdUnit, "WantedBy", "RequiredBy")
	if err != nil {
		return nil, err
	}
	for by := range strings.FieldsSeq(p["WantedBy"] + " " + p["RequiredBy"]) {
		// What systemctl enable --runtime makes is gone after the next boot.
		if (by == kubelet.Unit || strings.HasSuffix(by, ".target")) && was.File != "enabled-runtime" {
			return nil, nil
		}
	}
	return h.Systemd.BootLinks(ctx, node.ContainerdUnit)
}

// ContainerdUnit is the unit of a containerd that no package manager knows, or the drop-in that has the one which is too old run it.
func ContainerdUnit(n facts.Installation) (path string, content []byte) {
	dirs := append([]string{filepath.Join(n.Dir, "bin")}, n.Path...)
	if n.IsNew() {
		return containerdUnitPath, containerd.Unit(n.Binary, dirs, n.NoFile)
	}
	return replacementDropIn, containerd.Replacement(n.Binary, dirs, n.Args)
}

const (
	containerdUnitPath = "/etc/systemd/system/" + node.ContainerdUnit
	replacementDropIn  = containerdUnitPath + ".d/40-kubectl-runtime.conf"
)
