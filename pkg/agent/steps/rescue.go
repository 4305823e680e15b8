package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// Rescue brings a node whose kubelet is held back into service when the journal that tells what was changed cannot be used. It
// starts the runtime that the kubelet's own files name, both where they do not tell, and then the kubelet. It edits no file: what it
// removes are holds, which only this agent writes. Where nothing is held, it does nothing. It returns what it did, a line each.
func Rescue(ctx context.Context, systemd host.Systemd) ([]string, error) {
	return rescue(ctx, systemd, host.HoldFile, func() (string, error) {
		setup, err := kubelet.AtRest(ctx, systemd)
		if err != nil {
			return "", err
		}
		return setup.Endpoint()
	})
}

func rescue(ctx context.Context, systemd host.Systemd, holdFile string, endpoint func() (string, error)) ([]string, error) {
	if host.Absent(holdFile) {
		return nil, nil
	}
	var did []string
	onContainerd, onDocker := true, true
	if is, err := endpoint(); err != nil {
		did = append(did, fmt.Sprintf("cannot tell which runtime the kubelet is set to (%v): both are started", err))
	} else {
		onContainerd = strings.Contains(is, "containerd")
		onDocker = !onContainerd
		did = append(did, "the kubelet is set to "+is)
	}
	var errs []error
	if onContainerd {
		errs = append(errs, rescueUnits(ctx, systemd, []string{node.ContainerdUnit}, &did))
	}
	if onDocker {
		errs = append(errs, rescueUnits(ctx, systemd, slices.Concat(node.DockerUnits, node.CriDockerUnits), &did))
	}
	// Even beside a runtime that does not come up: a kubelet that runs says what is wrong, and goes on as soon as it is cured.
	// Whether the drop-ins' folders were made for the holds is in the journal alone: they stay.
	errs = append(errs, host.Remove(systemd.HoldPath(kubelet.Unit)), host.Remove(holdFile))
	errs = append(errs, systemd.DaemonReload(ctx), systemd.Start(ctx, kubelet.Unit))
	return append(did, "started the kubelet"), errors.Join(errs...)
}

// rescueUnits starts units. One that is held has lost its links to the agent, too, if it has none now.
func rescueUnits(ctx context.Context, systemd host.Systemd, units []string, did *[]string) error {
	var errs []error
	for _, unit := range units {
		state, err := systemd.State(ctx, unit)
		if err != nil || !state.Exists() {
			errs = append(errs, err)
			continue
		}
		if !host.Absent(systemd.HoldPath(unit)) {
			if len(state.Links) == 0 && state.File != "enabled" {
				links, err := systemd.BootLinks(ctx, unit)
				errs = append(errs, err, systemd.MakeLinks(links))
			}
			errs = append(errs, systemd.Unhold(ctx, state))
		}
		if state.Active != "active" {
			errs = append(errs, systemd.Start(ctx, unit))
			*did = append(*did, "started "+unit)
		}
	}
	return errors.Join(errs...)
}
