package steps

import (
	"context"
	"fmt"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// nodeSysctls keeps for the next boot what held while Docker ran. After a reboot since then, which has started no Docker any more, it sets
// that again; otherwise it sets nothing.
func nodeSysctls(h *node.Host) engine.Step {
	return step[[]host.Change]{
		id: "node-sysctls", title: "Keep the kernel settings that pods rely on",
		record: func(context.Context, engine.Report) ([]host.Change, error) {
			files, err := desired.SysctlFiles(h)
			if err != nil {
				return nil, err
			}
			changes, err := changesOf(h, files)
			if err == nil && len(changes) == 0 {
				err = engine.Skip("nothing to keep")
			}
			return changes, err
		},
		files: func(context.Context) ([]desired.File, error) { return desired.SysctlFiles(h) },
		apply: func(ctx context.Context, changes []host.Change, report engine.Report) error {
			for _, change := range changes {
				if err := backups(h).Apply(change); err != nil {
					return err
				}
			}
			settings, err := desired.Kernel(h)
			if err != nil {
				return err
			}
			setKernel(ctx, h, settings, report)
			report.Progress(strings.Join(pathsOf(changes), ", "), 0, 0, "")
			return nil
		},
		changed:    pathsOf,
		revertible: func(_ context.Context, changes []host.Change) error { return undoable(h, changes) },
		revert: func(_ context.Context, changes []host.Change, report engine.Report) error {
			return undoFiles(h, changes, report)
		},
	}
}

// setKernel sets what was on and is not any more.
func setKernel(ctx context.Context, h *node.Host, settings facts.KernelSettings, report engine.Report) {
	for _, name := range settings.On {
		value, there := facts.ReadSysctl(name)
		if value == "1" {
			continue
		}
		if !there && strings.HasPrefix(name, facts.BridgeSysctls) {
			if _, err := h.Runner.Run(ctx, "modprobe", facts.BridgeModule); err != nil {
				report.Warn(fmt.Sprintf("load %s: %v", facts.BridgeModule, err))
			}
		}
		if err := host.SetSysctl(name, "1"); err != nil {
			report.Warn(err.Error())
			continue
		}
		report.Info(name + " is on again: Docker had set it, and has not been started since the node was rebooted")
	}
}
