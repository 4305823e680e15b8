package steps

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

const kubeletConfigID = "kubelet-config"

func kubeletConfig(h *node.Host) engine.Step {
	return step[[]host.Change]{
		id: kubeletConfigID, title: "Point the kubelet at containerd",
		record: func(context.Context, engine.Report) ([]host.Change, error) {
			files, err := desired.KubeletFiles(h)
			if err != nil {
				return nil, err
			}
			return changesOf(h, files)
		},
		files: func(context.Context) ([]desired.File, error) { return desired.KubeletFiles(h) },
		apply: func(ctx context.Context, changes []host.Change, report engine.Report) error {
			for _, change := range changes {
				if err := backups(h).Apply(change); err != nil {
					return err
				}
			}
			report.Progress(strings.Join(pathsOf(changes), ", "), 0, 0, "")
			return nil // one of them may be a unit file: what starts the kubelet has systemd read these again
		},
		changed: pathsOf,
		revertible: func(ctx context.Context, changes []host.Change) error {
			return errors.Join(undoable(h, changes), sameKubelet(ctx, h, changes))
		},
		revert: func(ctx context.Context, changes []host.Change, report engine.Report) error {
			if err := undoFiles(h, changes, report); err != nil {
				return err
			}
			return h.Systemd.DaemonReload(ctx)
		},
	}
}

// sameKubelet refuses to put a kubelet's files back that an upgrade has rewritten since: kubeadm takes out the flags that the new release
// does not know, and a kubelet that is given one of them exits.
func sameKubelet(ctx context.Context, h *node.Host, changes []host.Change) error {
	found, err := facts.Of(h)
	if err != nil {
		return err
	}
	edited := ""
	for _, change := range changes {
		if isEdited, err := change.Edited(); err != nil {
			return err
		} else if isEdited {
			edited = change.Path
		}
	}
	if edited == "" {
		return nil
	}
	setup, err := found.Kubelet()
	if err != nil {
		return err
	}
	now, err := kubelet.AtRest(ctx, h.Systemd)
	if err != nil || now.Version.Minor == setup.Version.Minor {
		return err
	}
	return node.Refuse("see what differs from the copy of before, in "+filepath.Join(h.RunDir, "files")+", and take the kubelet back by hand or leave it on containerd",
		"the kubelet was %s when it was switched, is %s now, and %s was edited since: with that file as it was before, the kubelet may not start",
		setup.Version, now.Version, edited)
}
