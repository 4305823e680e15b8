package steps

import (
	"context"
	"fmt"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

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
