package steps

import (
	"context"
	"os"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

const (
	containerdConfigID = "containerd-config"
)

// containerdConfig writes containerd's config, after a throw-away daemon has taken it, and what else is carried over from Docker.
func containerdConfig(h *node.Host) engine.Step {
	return step[[]host.Change]{
		id: containerdConfigID, title: "Configure containerd",
		record: func(ctx context.Context, _ engine.Report) ([]host.Change, error) {
			files, err := desired.ContainerdFiles(ctx, h)
			if err != nil {
				return nil, err
			}
			changes, err := changesOf(h, files)
			if err == nil && len(changes) == 0 {
				err = engine.Skip(files[len(files)-1].Path + " is as it should be")
			}
			return changes, err
		},
		files: func(ctx context.Context) ([]desired.File, error) { return desired.ContainerdFiles(ctx, h) },
		apply: func(ctx context.Context, changes []host.Change, report engine.Report) error {
			return applyContainerdConfig(ctx, h, changes, report)
		},
		changed:    pathsOf,
		revertible: func(_ context.Context, changes []host.Change) error { return undoable(h, changes) },
		revert: func(ctx context.Context, changes []host.Change, report engine.Report) error {
			if err := undoFiles(h, changes, report); err != nil {
				return err
			}
			if err := h.Systemd.DaemonReload(ctx); err != nil {
				return err
			}
			unit, err := h.Systemd.State(ctx, node.ContainerdUnit)
			if err != nil || !unit.Running() {
				return err
			}
			return pods.RestartContainerdForUndo(ctx, h, report)
		},
	}
}

// applyContainerdConfig writes the config last, after a throw-away daemon has taken it.
func applyContainerdConfig(ctx context.Context, h *node.Host, changes []host.Change, report engine.Report) error {
	found, err := facts.Of(h)
	if err != nil {
		return err
	}
	// The config comes last; without a change it is the one on the host.
	at := found.ContainerdConfig
	if last := changes[len(changes)-1]; !desired.IsCarried(last.Path) {
		at = last.NewCopy
	}
	config, err := os.ReadFile(at)
	if err != nil {
		return err
	}
	// What the config names has to be there when it is tried; nobody else reads it yet.
	apply := func(carried bool) error {
		for _, change := range changes {
			if desired.IsCarried(change.Path) != carried {
				continue
			}
			if err := backups(h).Apply(change); err != nil {
				return err
			}
		}
		return nil
	}
	if err := apply(true); err != nil {
		return err
	}
	report.Progress("try it on a throw-away containerd", 0, 0, "")
	if err := containerd.Try(ctx, found.ContainerdBinary, found.ContainerdConfig, config); err != nil {
		return err
	}
	if err := apply(false); err != nil {
		return err
	}
	report.Progress(strings.Join(pathsOf(changes), ", "), 0, 0, "")
	return h.Systemd.DaemonReload(ctx) // one of them may be a drop-in
}
