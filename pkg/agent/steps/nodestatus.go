package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

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
		// Read each time: kubelets rotate their certificates.
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
