// Package pods finds, stops and kills the containers of pods: Docker's in a cutover, containerd's on the way back, with the runtime or, if
// it hangs, without. It restarts a containerd that hangs, and ends what a restart made Docker lose sight of. It knows no step.
package pods

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cni"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// maxGrace bounds what a container gets between its stop signal and SIGKILL, if its pod asks for more. The node was drained: what is
// left are DaemonSets' pods, static ones, and the agent's own.
const maxGrace = 30 * time.Second

// ListTimeout bounds a listing of Docker's containers: a daemon that is stuck in one of them answers never.
const ListTimeout = time.Minute

// DockerContainers lists Docker's containers, in a bounded time.
func DockerContainers(ctx context.Context, d *docker.Client) (containers []docker.Container, err error) {
	err = host.Within(ctx, ListTimeout, func(ctx context.Context) error {
		containers, err = d.Containers(ctx)
		return err
	})
	return containers, err
}

// StopDockers takes down Docker's pods the way the kubelet would have, so that CNI DEL runs for each. Containers are stopped, not
// removed: nothing is lost.
func StopDockers(ctx context.Context, found facts.Found, report engine.Report) error {
	return docker.With(found.DockerSocket, func(d *docker.Client) error {
		containers, err := DockerContainers(ctx, d)
		if err != nil {
			return err
		}
		if found.Dockershim() {
			err = stopDockershimPods(ctx, d, found, containers, report)
		} else {
			err = stopByCRI(ctx, d, found.Facts.OldEndpoint, report)
		}
		if err != nil {
			return err
		}
		if err := endPodsLeft(ctx, d, report); err != nil {
			return err
		}
		if err := releaseLeases(ctx, "", found, containers, report); err != nil {
			return err
		}
		report.Progress(fmt.Sprintf("%d sandboxes", count(containers, docker.Container.Sandbox)), 0, 0, "")
		return nil
	})
}

func count(containers []docker.Container, is func(docker.Container) bool) int {
	n := 0
	for _, c := range containers {
		if c.Running && is(c) {
			n++
		}
	}
	return n
}

func stopByCRI(ctx context.Context, d *docker.Client, endpoint string, report engine.Report) error {
	dial, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return cri.With(dial, endpoint, func(c *cri.Client) error {
		stop := c.StopAll(ctx, maxGrace, detachTime(ctx))
		if stop == nil {
			return nil
		}
		left, err := podsLeft(ctx, d)
		if err != nil {
			return err
		}
		if len(left) == 0 { // cri-dockerd stops a sandbox also where CNI DEL fails (core/sandbox_stop.go)
			report.Warn(notDetached + stop.Error())
			return nil
		}
		report.Warn("cri-dockerd did not stop all pods, so Docker is asked to: " + stop.Error())
		stopContainers(ctx, d, left, maxGrace, report)
		return nil
	})
}

// notDetached begins a warning of pods that are stopped, while their network may hold something for them: the network's agent is asked to free it, but
// does not run where a reboot came in between. It looks for what is gone when it starts.
const notDetached = "CNI DEL failed for pods that are stopped; what the network itself still holds for them is left to its agent: "

// maxDetach bounds CNI DEL for all pods together. A plugin whose agent is down may hang until it is killed.
const maxDetach = time.Minute

// detachTime is maxDetach, or less where less than three times of it is left.
func detachTime(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(maxDetach, time.Until(deadline)/3)
	}
	return maxDetach
}

// podsLeft lists the containers of pods that run.
func podsLeft(ctx context.Context, d *docker.Client) ([]docker.Container, error) {
	containers, err := DockerContainers(ctx, d)
	return slices.DeleteFunc(containers, func(c docker.Container) bool { return !c.Running || !c.Kubernetes() }), err
}

// killWait is how long a container gets to be gone after SIGKILL.
const killWait = 15 * time.Second

// endPodsLeft kills what outlived its stop, and fails while any of it runs: the same pods are about to start on containerd, and two
// etcds on one data directory destroy it.
func endPodsLeft(ctx context.Context, d *docker.Client, report engine.Report) error {
	left, err := podsLeft(ctx, d)
	if err != nil || len(left) == 0 {
		return err
	}
	report.Warn("still running after they were stopped, killed now: " + containerNames(left))
	var errs []error
	for _, c := range left {
		errs = append(errs, host.Within(ctx, killWait, func(ctx context.Context) error { return d.Kill(ctx, c.ID) }))
	}
	err = host.Within(ctx, killWait, func(ctx context.Context) error {
		return host.Poll(ctx, 250*time.Millisecond, func(ctx context.Context) error {
			left, err := podsLeft(ctx, d)
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("stop Docker's pods: %d container(s) run even after SIGKILL: %s", len(left), containerNames(left))
			}
			return err
		})
	})
	if err != nil {
		return errors.Join(append([]error{err}, errs...)...)
	}
	return nil
}

func containerNames(containers []docker.Container) string {
	var names []string
	for _, c := range containers {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// stopDockershimPods does what dockershim's StopPodSandbox did: its socket went with the kubelet. Containers come first, while
// they still have a network, then CNI DEL from the sandbox's network namespace, then the sandbox. Pods on the host's network come last,
// all of them: among them may be what CNI DEL needs, such as the network's own agent or the API server.
func stopDockershimPods(ctx context.Context, d *docker.Client, found facts.Found, containers []docker.Container, report engine.Report) error {
	network, err := cni.Detect(found.CNIConfDir, found.CNIBinDir)
	if err != nil {
		return err
	}
	onHost := map[string]bool{} // by the pod's UID
	for _, c := range containers {
		if _, _, uid := c.Pod(); c.Sandbox() && c.HostNetwork {
			onHost[uid] = true
		}
	}
	for _, last := range []bool{false, true} {
		var attached, running, others []docker.Container
		for _, c := range containers {
			if _, _, uid := c.Pod(); !c.Kubernetes() || onHost[uid] != last {
				continue
			}
			if c.Sandbox() && !c.HostNetwork {
				attached = append(attached, c)
			}
			switch {
			case c.Sandbox() && c.Running:
				running = append(running, c)
			case c.Running:
				others = append(others, c)
			}
		}
		stopContainers(ctx, d, others, maxGrace, report)
		detachAll(ctx, network, attached, report)
		stopContainers(ctx, d, running, time.Second, report)
	}
	return nil
}

// detachAll runs CNI DEL for sandboxes, some at a time: a plugin whose server does not answer takes as long as it is given.
func detachAll(ctx context.Context, network cni.Network, sandboxes []docker.Container, report engine.Report) {
	ctx, cancel := context.WithTimeout(ctx, detachTime(ctx))
	defer cancel()
	errs := make([]error, len(sandboxes))
	var group errgroup.Group
	group.SetLimit(16)
	for n, c := range sandboxes {
		group.Go(func() error {
			errs[n] = detach(ctx, network, c)
			return nil
		})
	}
	_ = group.Wait() // none of them fails
	// As in dockershim: a plugin that fails must not keep the pod from going. What host-local holds is freed afterwards.
	if err := cri.JoinSome(errs); err != nil {
		report.Warn(notDetached + err.Error())
	}
}

func detach(ctx context.Context, network cni.Network, c docker.Container) error {
	ports, err := cni.CheckpointPortMappings("", c.ID)
	if err != nil {
		return err
	}
	a := cni.Attachment{ContainerID: c.ID, PortMappings: ports}
	a.Namespace, a.Name, a.UID = c.Pod()
	if c.PID > 0 {
		a.Netns = fmt.Sprintf("%s/%d/ns/net", node.Proc, c.PID)
	}
	return host.Within(ctx, 30*time.Second, func(ctx context.Context) error { return network.Del(ctx, a) })
}

// stopSlack is what Docker gets beyond the grace to stop a container; some of its releases wait for ever for an exit that they missed.
const stopSlack = 20 * time.Second

// stopContainers stops some at a time: Docker's daemon takes no more any faster. What it says of a failure is a warning, since
// endPodsLeft looks at what became of the containers.
func stopContainers(ctx context.Context, d *docker.Client, containers []docker.Container, limit time.Duration, report engine.Report) {
	var mu sync.Mutex
	var done int64
	var group errgroup.Group
	group.SetLimit(16)
	for _, c := range containers {
		group.Go(func() error {
			grace := c.Grace(limit)
			err := host.Within(ctx, grace+stopSlack, func(ctx context.Context) error { return d.Stop(ctx, c.ID, grace) })
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				report.Warn(err.Error())
				return nil
			}
			done++
			report.Progress("stop containers", done, int64(len(containers)), "containers")
			return nil
		})
	}
	_ = group.Wait() // none of them fails
}

// releaseLeases frees the addresses below dir that host-local holds for nobody; it would never give them out again. These are the addresses of
// Docker's sandboxes, which are stopped, and in the kubelet's network those of sandboxes that no runtime knows: cri-dockerd removes a sandbox whose
// CNI DEL failed, and dockershim one that a reboot left without a network namespace (it runs no CNI DEL for it).
func releaseLeases(ctx context.Context, dir string, found facts.Found, containers []docker.Container, report engine.Report) error {
	network, _ := cni.Detect(found.CNIConfDir, found.CNIBinDir) // if it is not known, only the stopped sandboxes' addresses are freed
	stopped, others := map[string]bool{}, map[string]bool{}
	for _, c := range containers {
		if c.Sandbox() {
			stopped[c.ID] = true
		} else {
			others[c.ID] = true
		}
	}
	owned := sync.OnceValues(func() (map[string]bool, error) { return containerdSandboxes(ctx, found) })
	released, err := cni.Release(dir, func(lease cni.Lease) bool {
		if stopped[lease.ContainerID] {
			return true
		}
		if others[lease.ContainerID] || !lease.OfSandbox(network.Name) {
			return false
		}
		known, err := owned()
		return err == nil && !known[lease.ContainerID]
	})
	for _, lease := range released {
		if stopped[lease.ContainerID] {
			report.Info(fmt.Sprintf("released %s, which CNI had left to Docker's pod %.12s", lease.IP, lease.ContainerID))
			continue
		}
		report.Info(fmt.Sprintf("released %s: its sandbox %.12s exists neither in Docker nor in containerd", lease.IP, lease.ContainerID))
	}
	return err
}

// containerdSandboxes are the IDs of the sandboxes that containerd knows, running or not.
func containerdSandboxes(ctx context.Context, found facts.Found) (map[string]bool, error) {
	known := map[string]bool{}
	err := host.Within(ctx, 5*time.Second, func(ctx context.Context) error {
		return cri.With(ctx, found.Facts.NewEndpoint, func(c *cri.Client) error {
			sandboxes, err := c.Sandboxes(ctx)
			for _, sandbox := range sandboxes {
				known[sandbox.ID] = true
			}
			return err
		})
	})
	return known, err
}
