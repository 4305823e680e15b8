package steps

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// verify looks at the switched host again; it changes nothing.
func verify(h *node.Host) engine.Step {
	return step[nothing]{
		id: "verify", title: "Check runtime and kubelet", record: recordNothing,
		apply: func(ctx context.Context, _ nothing, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			check, err := waitForCRI(ctx, h, found, cri.Report.Ready)
			if err != nil {
				return err
			}
			if err := kubelet.Healthy(ctx, found.HealthzURL); err != nil {
				return err
			}
			units := node.CriDockerUnits
			if !h.Spec.KeepDocker {
				units = append(units[:len(units):len(units)], node.DockerUnits...)
			}
			for _, unit := range units {
				state, err := h.Systemd.State(ctx, unit)
				if err != nil {
					return err
				}
				if state.Running() {
					return fmt.Errorf("%s is %s", unit, state.Active)
				}
			}
			report.Progress("containerd "+check.RuntimeVersion, 0, 0, "")
			return nil
		},
	}
}

// Finish fills in what a phase's result says about the host: the runtime that the node is left on, and the files that differ from
// before. It tries for a few seconds and leaves out what it cannot find.
func Finish(ctx context.Context, h *node.Host, result *protocol.Result) {
	result.ChangedFiles = changedFiles(h.Systemd, h.Records())
	found, err := facts.Of(h)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, switched := engine.Memo(h.Records(), kubeletStartID); switched {
		_ = cri.With(ctx, found.Facts.NewEndpoint, func(c *cri.Client) error {
			check, err := c.Check(ctx)
			if err == nil {
				result.RuntimeVersion = check.RuntimeName + "://" + check.RuntimeVersion
			}
			return err
		})
		return
	}
	_ = docker.With(found.DockerSocket, func(d *docker.Client) error {
		info, err := d.Info(ctx)
		if err == nil {
			result.RuntimeVersion = "docker://" + info.Version
		}
		return err
	})
}

// changedFiles lists the files whose change stands.
func changedFiles(systemd host.Systemd, records []journal.Record) []string {
	var paths []string
	for _, id := range []string{containerdConfigID, "node-sysctls", kubeletConfigID} {
		if raw, ok := engine.Memo(records, id); ok {
			_ = with(id, raw, func(changes []host.Change) error {
				if len(changes) > 0 {
					paths = append(paths, strings.Split(pathsOf(changes), ", ")...)
				}
				return nil
			})
		}
	}
	if raw, ok := engine.Memo(records, containerdInstallID); ok {
		_ = with(containerdInstallID, raw, func(memo installed) error {
			if len(memo.Changes) > 0 {
				paths = append(paths, pathsOf(memo.Changes))
			}
			return nil
		})
	}
	if raw, ok := engine.Memo(records, dockerStopID); ok {
		_ = with(dockerStopID, raw, func(units []host.UnitState) error {
			for _, unit := range units {
				paths = append(paths, systemd.HoldPath(unit.Name))
			}
			if !host.Absent(linkFile) {
				paths = append(paths, linkFile)
			}
			return nil
		})
	}
	return paths
}
