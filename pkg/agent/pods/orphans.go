package pods

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// RestartContainerd restarts containerd. Docker's containers outlive it, but one that Docker was just starting may run on without Docker's
// knowledge: Docker takes the start for failed ("transport is closing") and cannot delete what runs (moby 20.10 to 28,
// daemon/start.go). The kubelet starts the pod's container once more, beside one that has its port or its lock. Such are ended here.
func RestartContainerd(ctx context.Context, h *node.Host, report engine.Report) error {
	// The host was inspected a while ago: see the check host-containerd-kill-mode.
	mode, err := node.ContainerdKillMode(ctx, h, node.Proc)
	if err != nil {
		return err
	}
	if err := mode.Restartable(); err != nil {
		return err
	}
	if err := h.Systemd.Restart(ctx, node.ContainerdUnit); err != nil {
		return err
	}
	found, err := facts.Of(h)
	if err != nil {
		return err
	}
	o := orphanage{address: found.ContainerdAddress, proc: "/proc", pause: 2 * time.Second, running: func(ctx context.Context) (map[string]bool, error) {
		ids := map[string]bool{}
		err := docker.With(found.DockerSocket, func(d *docker.Client) error {
			containers, err := d.Containers(ctx)
			for _, c := range containers {
				ids[c.ID] = c.Running
			}
			return err
		})
		return ids, err
	}}
	if state, err := h.Systemd.State(ctx, node.DockerUnit); err != nil || !state.Running() {
		return err
	}
	var ended []string
	err = host.Within(ctx, orphanTime, func(ctx context.Context) (err error) {
		ended, err = o.end(ctx)
		return err
	})
	for _, id := range ended {
		report.Warn("Docker lost sight of container " + id + " of a pod while containerd was restarted; it was ended, and the kubelet starts another")
	}
	if err != nil && ctx.Err() == nil {
		report.Warn("whether Docker lost sight of a container while containerd was restarted is not known: " + err.Error())
		return nil
	}
	return err
}

// orphanTime bounds the search: a Docker that hangs must not hold up what needs no answer.
const orphanTime = 30 * time.Second

// orphanage finds and ends the containers of pods that run in Docker's namespace of containerd and that Docker does not run.
type orphanage struct {
	address string // of containerd
	proc    string
	// pause is how long one has to be without Docker before it is ended: Docker learns only after the start that it has started.
	pause   time.Duration
	running func(context.Context) (map[string]bool, error)
}

// maxLooks bounds how often is looked while there still are some.
const maxLooks = 5

func (o orphanage) end(ctx context.Context) (ended []string, err error) {
	err = containerd.With(o.address, func(c *client.Client) error {
		ended, err = o.endBy(namespaces.WithNamespace(ctx, dockerNamespace), c)
		return err
	})
	return ended, err
}

func (o orphanage) endBy(ctx context.Context, c *client.Client) (ended []string, err error) {
	var before map[string]bool
	for look := range maxLooks {
		now, err := o.look(ctx, c)
		if err != nil {
			return ended, err
		}
		for id := range now {
			if !before[id] {
				continue
			}
			if err := endTask(ctx, c, id); err != nil {
				return ended, err
			}
			ended = append(ended, id)
			delete(now, id)
		}
		if look > 0 && len(now) == 0 {
			return ended, nil
		}
		before = now
		select {
		case <-ctx.Done():
			return ended, ctx.Err()
		case <-time.After(o.pause):
		}
	}
	return ended, nil
}

// look asks containerd first: what Docker has ended since is no orphan either.
func (o orphanage) look(ctx context.Context, c *client.Client) (map[string]bool, error) {
	list, err := c.TaskService().List(ctx, &taskapi.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list Docker's tasks in containerd: %w", err)
	}
	running, err := o.running(ctx)
	if err != nil {
		return nil, err
	}
	orphans := map[string]bool{}
	for _, t := range list.Tasks {
		if t.Status != task.Status_STOPPED && !running[t.ID] && o.ofPod(int(t.Pid)) {
			orphans[t.ID] = true
		}
	}
	return orphans, nil
}

// ofPod tells whether a process is in a pod's cgroup. Another Docker daemon may have its containers in the same namespace.
func (o orphanage) ofPod(pid int) bool {
	process, err := host.ReadProcess(o.proc, pid)
	return err == nil && inPod(process)
}

func inPod(process host.Process) bool { return strings.Contains(process.Cgroup, "/kubepods") }

func endTask(ctx context.Context, c *client.Client, id string) error {
	err := func() error {
		container, err := c.LoadContainer(ctx, id)
		if err != nil {
			return err
		}
		t, err := container.Task(ctx, nil)
		if err != nil {
			return err
		}
		if _, err := t.Delete(ctx, client.WithProcessKill); err != nil {
			return err
		}
		return container.Delete(ctx)
	}()
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("end container %s, which Docker does not know: %w", id, err)
	}
	return nil
}

// RestartContainerdForUndo is restartContainerd for an undo. A containerd that cannot be restarted safely runs on with what it has read.
func RestartContainerdForUndo(ctx context.Context, h *node.Host, report engine.Report) error {
	err := RestartContainerd(ctx, h, report)
	var refused *node.Refusal
	if errors.As(err, &refused) {
		report.Warn("containerd was not restarted and still has the configuration of the switch: " + err.Error() + "; " + refused.Hint() + ", then restart it")
		return nil
	}
	return err
}
