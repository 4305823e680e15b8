package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

func nodeReady(h *node.Host) engine.Step {
	return step[nothing]{
		id: "node-ready", title: "Wait until the node is Ready on containerd",
		record: func(context.Context, engine.Report) (nothing, error) {
			found, err := facts.Of(h)
			if err == nil && found.Kubeconfig == "" {
				err = engine.Skip("the kubelet's credentials cannot be used for it")
			}
			return nothing{}, err
		},
		apply: func(ctx context.Context, _ nothing, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			var start startMemo
			if raw, ok := engine.Memo(h.Records(), kubeletStartID); ok {
				if err := with(kubeletStartID, raw, func(m startMemo) error { start = m; return nil }); err != nil {
					return err
				}
			}
			wait := readyWait{runtime: "containerd://", startAgain: func(ctx context.Context) error {
				return startAgain(ctx, h, found, report)
			}}
			return pods.WhileAnswering(ctx, h, found, func(ctx context.Context) error {
				if err := waitReady(ctx, h, found, wait, report); err != nil {
					return &host.UnitError{Unit: kubelet.Unit, Err: err, Log: h.Systemd.Log(ctx, kubelet.Unit)}
				}
				return waitContainer(ctx, h, found, start.Started, report)
			})
		},
	}
}

// containerWait is how long the kubelet gets to start a container. It is longer than silence, after which a containerd that hangs is noticed.
const containerWait = time.Minute

// waitContainer waits until the kubelet has started a container: a node is Ready in the API before its runtime has done anything for it. At
// least this run's own pod is to come back; where the Job was deleted and the node has no other pod either, that is a warning.
//
// A container counts that was made since kubelet-start, or since the start of the kubelet that runs now: after the clock was set back, the
// first of these lies ahead. None of an earlier boot runs.
func waitContainer(ctx context.Context, h *node.Host, found facts.Found, since time.Time, report engine.Report) error {
	if started, err := kubeletStarted(ctx, h); err == nil && started.Before(since) {
		since = started
	}
	report.Progress("wait until the kubelet has started a container", 0, 0, "")
	err := host.Within(ctx, containerWait, func(ctx context.Context) error {
		return host.Poll(ctx, 250*time.Millisecond, func(ctx context.Context) error {
			return cri.With(ctx, found.Facts.NewEndpoint, func(c *cri.Client) error {
				if started, err := c.Started(ctx, since); err != nil || started {
					return err
				}
				return errors.New("the kubelet has started no container yet")
			})
		})
	})
	switch {
	case err == nil:
		report.Progress("Ready, and the kubelet has started a container", 0, 0, "")
	case ctx.Err() == nil:
		report.Warn(fmt.Sprintf("the node is Ready, but %v", err))
		err = nil
	}
	return err
}

// noLookYet is in the status of a kubelet that has not looked at its runtime's containers yet (pkg/kubelet/pleg/generic.go, Healthy).
const noLookYet = "pleg has yet to be successful"

// readyWait is what to wait for.
type readyWait struct {
	// runtime is how the node's containerRuntimeVersion begins.
	runtime string
	// startAgain, if set, starts the kubelet once more, once, where it has reported too early. One of 1.23 or 1.24 sends its first status a tenth
	// of a second after its start, and the next one after nodeStatusUpdateFrequency, 10 s: longer than a start takes.
	startAgain func(context.Context) error
}

// isTooEarly reports whether the status is the first one since the start, and says nothing but that the kubelet has only just begun.
func (w *readyWait) isTooEarly(node kubelet.Node) bool {
	return !node.Ready && strings.HasPrefix(node.RuntimeVersion, w.runtime) && strings.Contains(node.ReadyMessage, noLookYet)
}

// waitReady waits until the API server shows the node Ready on a runtime, as the kubelet that runs now has reported it.
func waitReady(ctx context.Context, h *node.Host, found facts.Found, wait readyWait, report engine.Report) error {
	if found.Kubeconfig == "" {
		return nil
	}
	exits := &exits{systemd: h.Systemd, first: -1}
	fresh := newFreshness()
	var version, said string
	err := host.Poll(ctx, 250*time.Millisecond, func(ctx context.Context) error {
		if err := exits.check(ctx); err != nil {
			return err
		}
		// Read anew each time: kubelets rotate their certificates.
		api, err := kubelet.NewAPI(os.ReadFile, found.Kubeconfig)
		if err != nil {
			return err
		}
		node, err := api.Node(ctx, h.Spec.Node)
		if err != nil {
			return err
		}
		version = node.RuntimeVersion
		if wait.startAgain != nil && wait.isTooEarly(node) {
			again := wait.startAgain
			wait.startAgain = nil
			if err := again(ctx); err != nil {
				return err
			}
		}
		up, err := uptime()
		if err != nil {
			return err
		}
		err = fresh.check(node, exits.started, up, time.Now())
		switch {
		case !strings.HasPrefix(version, wait.runtime):
			err = fmt.Errorf("node %s still reports %s", h.Spec.Node, version)
		case err != nil:
			err = fmt.Errorf("node %s: %w", h.Spec.Node, err)
		case !node.Ready:
			err = fmt.Errorf("node %s is not Ready: %s", h.Spec.Node, node.ReadyMessage)
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			report.Progress(said, 0, 0, "")
		}
		return err
	})
	if err == nil {
		report.Progress("Ready on "+version, 0, 0, "")
	}
	return err
}

// kubeletStarted is when the kubelet that runs now was started, on the clock as it is set now.
func kubeletStarted(ctx context.Context, h *node.Host) (time.Time, error) {
	exits := &exits{systemd: h.Systemd, first: -1}
	if err := exits.check(ctx); err != nil {
		return time.Time{}, err
	}
	up, err := uptime()
	if err == nil && exits.started == 0 {
		err = errors.New("the kubelet does not run")
	}
	return timeOfDay(exits.started, up, time.Now()), err
}

// startAgain restarts the kubelet and waits until it is healthy.
func startAgain(ctx context.Context, h *node.Host, found facts.Found, report engine.Report) error {
	setup, err := found.Kubelet()
	if err != nil {
		return err
	}
	report.Info("the kubelet reported the node before it had looked at its containers, and would do so again in 10 s: it is started once more")
	end := answerForDocker(setup.Version, cadvisorSocket, report)
	defer end()
	if err := h.Systemd.Restart(ctx, kubelet.Unit); err != nil {
		return err
	}
	return waitHealthy(ctx, h, found.HealthzURL, 0)
}
