package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
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
	report.Progress(pathsOf(changes), 0, 0, "")
	return h.Systemd.DaemonReload(ctx) // one of them may be a drop-in
}

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
// counting a pod's containers from those, and comes to numbers that Docker has used since: their logs' names are links into Docker's
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

// runtimeReady is for a moment in which the CNI's own pods are down: some remove its configuration when they end.
func runtimeReady(check cri.Report) bool { return check.RuntimeReady }

// waitForCRI waits until the new runtime is ready, and checks the cgroup driver where the runtime tells it.
func waitForCRI(ctx context.Context, h *node.Host, found facts.Found, ready func(cri.Report) bool) (cri.Report, error) {
	var check cri.Report
	err := host.Within(ctx, time.Minute, func(ctx context.Context) error {
		return cri.With(ctx, found.Facts.NewEndpoint, func(c *cri.Client) error {
			return host.Poll(ctx, 250*time.Millisecond, func(ctx context.Context) (err error) {
				if check, err = c.Check(ctx); err != nil {
					return err
				}
				if !ready(check) {
					return fmt.Errorf("containerd is not ready: %s", check.Message)
				}
				return nil
			})
		})
	})
	if err != nil {
		return check, &host.UnitError{Unit: node.ContainerdUnit, Err: err, Log: h.Systemd.Log(ctx, node.ContainerdUnit)}
	}
	if check.CgroupDriver != "" && check.CgroupDriver != found.Facts.CgroupDriver {
		return check, fmt.Errorf("containerd says that its cgroup driver is %s, the kubelet's is %s", check.CgroupDriver, found.Facts.CgroupDriver)
	}
	return check, nil
}
