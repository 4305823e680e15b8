package pods

import (
	"context"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

const (
	// answerTime is what containerd gets to answer a question that needs no work.
	answerTime = 10 * time.Second
	// restartTime is what it gets to come up again: systemd tells when it serves.
	restartTime = 30 * time.Second
)

// WakeContainerd restarts a containerd that runs and does not answer, and whose process ignores all but SIGKILL: Docker's daemon runs
// its containers with it and would wait for it for ever. Containers outlive that. A containerd that cannot be asked, since the host was
// not inspected, is left alone.
func WakeContainerd(ctx context.Context, h *node.Host, report engine.Report) error {
	found, err := facts.Of(h)
	if err != nil {
		return nil //nolint:nilerr // there is nothing to ask, and Docker's start will tell
	}
	state, err := h.Systemd.State(ctx, node.ContainerdUnit)
	if err != nil || !state.Running() {
		return err
	}
	return wakeIfHung(ctx, h, found.Facts.NewEndpoint, answerTime, report)
}

func wakeIfHung(ctx context.Context, h *node.Host, endpoint string, answer time.Duration, report engine.Report) error {
	silent := host.Within(ctx, answer, func(ctx context.Context) error {
		return cri.With(ctx, endpoint, func(*cri.Client) error { return nil })
	})
	if silent == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	report.Warn("containerd does not answer and is restarted: " + silent.Error())
	return host.Within(ctx, restartTime, func(ctx context.Context) error {
		if err := h.Systemd.Kill(ctx, node.ContainerdUnit); err != nil {
			return err
		}
		return h.Systemd.Restart(ctx, node.ContainerdUnit)
	})
}
