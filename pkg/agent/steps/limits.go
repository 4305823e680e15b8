package steps

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// lookAtLimits finds what limits a pod has that Docker starts now: those of the youngest sandbox, since pause programs set none. This pod's
// own is the youngest there can be.
func (i *inspection) lookAtLimits(ctx context.Context) error {
	var limits []translate.Limit
	var youngest time.Time
	for _, c := range i.containers {
		if !c.Sandbox() || c.PID == 0 {
			continue
		}
		started, err := host.Started(node.Proc, c.PID)
		if err != nil || started.Before(youngest) {
			continue // one that has ended meanwhile is of no use
		}
		if of, err := desired.LimitsOf(node.Proc, c.PID); err == nil {
			limits, youngest = of, started
		}
	}
	i.PodLimits = limits
	var err error
	if i.PrivateContainerd, err = i.privateContainerd(); err != nil {
		return err
	}
	carried, err := desired.LimitsToCarry(ctx, i.h, i.Found)
	if err != nil {
		return err
	}
	for _, c := range carried.Cannot {
		i.warn("%s", c)
	}
	var same []string
	for _, l := range limits {
		if at := slices.IndexFunc(carried.Limits, func(c translate.Limit) bool { return c.Name == l.Name }); at < 0 {
			same = append(same, l.Name+" "+desired.ShowLimit(l))
		}
	}
	for _, l := range carried.Limits {
		i.note(protocol.CheckLimits, "%s stays %s in pods: containerd's containers get it from %s", l.Name, desired.ShowLimit(l), desired.BaseSpecFile)
	}
	if len(same) > 0 {
		by := "containerd's containers inherit the same"
		if !desired.WillRun(ctx, i.h, i.Found) {
			by = "compared with containerd's once that is installed"
		}
		i.note(protocol.CheckLimits, "%s in pods: %s", strings.Join(same, ", "), by)
	}
	return nil
}

// compareLimits has what differs reported: it is no reason to leave the node on Docker for.
func compareLimits(found facts.Found, p cri.Processes, report engine.Report) {
	differ, err := desired.DifferingLimits(found.PodLimits, p)
	if err != nil {
		report.Info(fmt.Sprintf("a pod's limits on containerd are not known: %v", err))
	}
	for _, text := range differ {
		report.Warn(text)
	}
}
