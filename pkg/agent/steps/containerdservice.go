package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

// containerdService enables containerd, has it read its config, and waits until CRI is ready.
func containerdService(h *node.Host) engine.Step {
	return step[host.UnitState]{
		id: "containerd-service", title: "Start containerd with CRI",
		record: func(ctx context.Context, _ engine.Report) (host.UnitState, error) {
			return h.Systemd.State(ctx, node.ContainerdUnit)
		},
		files: func(ctx context.Context) ([]desired.File, error) {
			was, err := h.Systemd.State(ctx, node.ContainerdUnit)
			if err != nil {
				return nil, err
			}
			links, err := desired.BootLinks(ctx, h, was)
			return desired.Links(links, false), err
		},
		apply: func(ctx context.Context, was host.UnitState, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			if found.Install.IsNew() {
				if err := h.Systemd.Unhold(ctx, was); err != nil {
					return err
				}
			}
			if links, err := desired.BootLinks(ctx, h, was); err != nil {
				return err
			} else if len(links) > 0 {
				if err := errors.Join(h.Systemd.MakeLinks(links), h.Systemd.DaemonReload(ctx)); err != nil {
					return err
				}
			}
			if !was.Running() {
				if err := host.ClearSocket(found.ContainerdAddress); err != nil {
					return err
				}
			}
			// Also where the config was right already: nobody knows whether the daemon has read it.
			if err := pods.RestartContainerd(ctx, h, report); err != nil {
				return err
			}
			report.Progress("wait for CRI", 0, 0, "")
			check, err := waitForCRI(ctx, h, found, cri.Report.Ready)
			if err != nil {
				return err
			}
			removeRemains(ctx, h, found, report)
			report.Progress("containerd "+check.RuntimeVersion, 0, 0, "")
			return nil
		},
		revert: func(ctx context.Context, was host.UnitState, _ engine.Report) error {
			found, err := facts.Of(h)
			if err == nil && found.Install.IsNew() {
				err = h.Systemd.Hold(ctx, "containerd is being removed.", node.ContainerdUnit)
			}
			if err != nil {
				return err
			}
			return h.Systemd.Restore(ctx, was)
		},
	}
}

// removeRemains removes what containerd has of pods that a kubelet ran on it before, as in a switch that was rolled back. A kubelet goes on
// counting a pod's containers from those, and reaches numbers that Docker has used since: their logs' names are links into Docker's
// folder, which containerd 1.6 writes through and 2.x refuses to open ("too many levels of symbolic links"). Without them it goes on from the logs.
func removeRemains(ctx context.Context, h *node.Host, found facts.Found, report engine.Report) {
	err := host.Within(ctx, time.Minute, func(ctx context.Context) error {
		return cri.With(ctx, found.Facts.NewEndpoint, func(c *cri.Client) error {
			count, err := c.RemoveStopped(ctx)
			if err == nil && count > 0 {
				report.Info(fmt.Sprintf("removed from containerd what was left of %d stopped pods", count))
			}
			return err
		})
	})
	if err != nil {
		report.Info(fmt.Sprintf("what containerd has of stopped pods stays: %v", err))
	}
}
