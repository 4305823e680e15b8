package pods

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cni"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// Stopper stops the pods that containerd runs, with containerd or, if it hangs, without. Docker is about to start the same pods, so it
// ends either with none of their processes left or with an error.
type Stopper struct {
	h        *node.Host
	endpoint string
	pods     *podProcesses
	limits   stopLimits
	// leases is where host-local keeps the pods' addresses; empty for the default.
	leases string
}

// stopLimits add up to less than the engine gives one attempt to undo a step, so that the last resort is always reached.
type stopLimits struct {
	ask     time.Duration // until containerd answers
	stop    time.Duration // to stop all pods
	again   time.Duration // to stop what is left of them, without grace
	restart time.Duration // of containerd
	kill    time.Duration // until all processes are gone
}

// backGrace is the longest grace on the way back: pods on the host's network get theirs after the others.
const backGrace = 25 * time.Second

// NewStopper is for the pods of the containerd that was found.
func NewStopper(h *node.Host, found facts.Found) Stopper {
	return Stopper{
		h: h, endpoint: found.Facts.NewEndpoint,
		pods: &podProcesses{
			proc: node.Proc, address: found.ContainerdAddress, namespace: podNamespace,
			freezer: host.Freezer, kill: killProcess,
		},
		limits: stopLimits{ask: 10 * time.Second, stop: time.Minute, again: 20 * time.Second, restart: 20 * time.Second, kill: 15 * time.Second},
	}
}

// Stop stops all pods.
func (p Stopper) Stop(ctx context.Context, report engine.Report) error {
	state, err := p.h.Systemd.State(ctx, node.ContainerdUnit)
	if err != nil {
		return err
	}
	left := fmt.Errorf("%s is %s", node.ContainerdUnit, state.Active)
	if state.Running() {
		left = p.byCRI(ctx, report)
	}
	if err := p.End(ctx, left != nil); err != nil {
		return errors.Join(err, left)
	}
	if left == nil {
		return nil
	}
	return p.endNetworks(ctx, left, report)
}

// endNetworks does what it can of CNI DEL where that did not run or failed, which it does where the network's own agent does not run on the
// node. A network namespace outlives its pod's processes: it goes first, since its address is given to another pod next.
func (p Stopper) endNetworks(ctx context.Context, left error, report engine.Report) error {
	namespaces := map[string]string{}
	maps.Copy(namespaces, p.pods.sandboxes)
	asked := p.ask(ctx, func(c *cri.Client) error {
		return host.Within(ctx, p.limits.ask, func(ctx context.Context) error {
			sandboxes, err := c.Sandboxes(ctx)
			for _, sandbox := range sandboxes { // also one whose network was never complete: it may have an address
				namespaces[sandbox.ID] = namespaces[sandbox.ID]
			}
			if err != nil {
				return err
			}
			known, err := c.NetworkNamespaces(ctx)
			maps.Copy(namespaces, known)
			return err
		})
	})
	if len(namespaces) == 0 {
		return nil
	}
	report.Warn(fmt.Sprintf("%v: what still ran of containerd's pods was killed, and their network was taken down without CNI DEL. Host ports of theirs may not work before the node is rebooted", left))
	if asked != nil {
		report.Warn("what containerd's pods hold of the network may not be known in full: " + asked.Error())
	}
	var gone []string
	for _, id := range slices.Sorted(maps.Keys(namespaces)) {
		if err := host.RemoveNetworkNamespace(namespaces[id]); err != nil {
			report.Warn(fmt.Sprintf("containerd's pod %.12s keeps its address until the node is rebooted: %v", id, err))
			continue
		}
		gone = append(gone, id)
	}
	released, err := cni.Release(p.leases, func(lease cni.Lease) bool { return slices.Contains(gone, lease.ContainerID) })
	for _, lease := range released {
		report.Info(fmt.Sprintf("released %s, which CNI had left to containerd's pod %.12s", lease.IP, lease.ContainerID))
	}
	return err
}

// ReleaseLost frees the addresses that host-local holds in the kubelet's network for sandboxes that containerd does not know: containerd 2 forgets a
// sandbox whose CNI ADD and DEL failed, as they do before the network's own agent runs on the node (containerd/containerd#12132). It is called
// once the pods are stopped, with the kubelet and Docker down: then no sandbox is being made, and none of Docker's runs. Where it is not certain whose an
// address is, it stays.
func (p Stopper) ReleaseLost(ctx context.Context, found facts.Found, report engine.Report) {
	docker, err := p.h.Systemd.State(ctx, node.DockerUnit)
	if err != nil || docker.Running() {
		return
	}
	network, err := cni.Detect(found.CNIConfDir, found.CNIBinDir)
	if err != nil {
		return
	}
	known, err := containerdSandboxes(ctx, found)
	if err != nil {
		return
	}
	released, err := cni.Release(p.leases, func(lease cni.Lease) bool { return lease.OfSandbox(network.Name) && !known[lease.ContainerID] })
	for _, lease := range released {
		report.Info(fmt.Sprintf("released %s, which CNI had left to the sandbox %.12s that containerd no longer knows", lease.IP, lease.ContainerID))
	}
	if err != nil {
		report.Warn("addresses of containerd's pods may stay taken: " + err.Error())
	}
}

// byCRI stops all pods through containerd, which is killed and started again if it does not answer: pods outlive that.
func (p Stopper) byCRI(ctx context.Context, report engine.Report) error {
	err := p.stopAll(ctx, p.limits.stop, backGrace)
	if err == nil {
		return nil
	}
	report.Warn("stop containerd's pods: " + err.Error() + "; trying again")
	err = p.ask(ctx, func(c *cri.Client) error {
		return host.Within(ctx, p.limits.ask, func(ctx context.Context) error {
			_, err := c.Sandboxes(ctx)
			return err
		})
	})
	if err != nil {
		report.Warn("containerd does not answer and is restarted: " + err.Error())
		err := host.Within(ctx, p.limits.restart, func(ctx context.Context) error {
			if err := p.h.Systemd.Kill(ctx, node.ContainerdUnit); err != nil {
				return err
			}
			return p.h.Systemd.Restart(ctx, node.ContainerdUnit)
		})
		if err != nil {
			return err
		}
	}
	return p.stopAll(ctx, p.limits.again, time.Second)
}

func (p Stopper) stopAll(ctx context.Context, limit, grace time.Duration) error {
	return p.ask(ctx, func(c *cri.Client) error {
		return host.Within(ctx, limit, func(ctx context.Context) error { return c.StopAll(ctx, grace, detachTime(ctx)) })
	})
}

func (p Stopper) ask(ctx context.Context, do func(*cri.Client) error) error {
	dial, cancel := context.WithTimeout(ctx, p.limits.ask)
	defer cancel()
	return cri.With(dial, p.endpoint, do)
}

// End kills what is left of containerd's pods, with their shims where containerd did not stop them itself.
func (p Stopper) End(ctx context.Context, shims bool) error {
	return host.Within(ctx, p.limits.kill, func(ctx context.Context) error { return p.pods.end(ctx, shims) })
}

// EndStray stops a kubelet that runs although it is only about to be started again, and then the pods of containerd: somebody else
// started it in the middle of the cutover, such as Rescue, and it keeps to the runtime that its files named then.
func (p Stopper) EndStray(ctx context.Context, hold func(context.Context) error, report engine.Report) error {
	state, err := p.h.Systemd.State(ctx, kubelet.Unit)
	if err != nil || !state.Running() {
		return err
	}
	if err := hold(ctx); err != nil {
		return err
	}
	return p.Stop(ctx, report)
}
