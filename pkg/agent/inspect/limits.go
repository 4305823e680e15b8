package inspect

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var limitsCheck = check{id: protocol.CheckLimits, needs: []string{protocol.CheckDocker, protocol.CheckDockerConfig, protocol.CheckContainerd}, run: checkLimits}

// checkLimits finds what limits a pod has that Docker starts now: those of the youngest sandbox, since pause programs set none. This pod's
// own is the youngest there can be.
func checkLimits(ctx context.Context, i *inspection) error {
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
	if i.PrivateContainerd, err = dockerRunsContainerd(i); err != nil {
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
