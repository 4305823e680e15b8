package steps

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

const (
	// holdDropIn keeps the kubelet down while the hold file exists, whoever wants to start it: systemd at boot, an admin, a
	// configuration manager.
	holdDropIn = "/etc/systemd/system/kubelet.service.d/" + host.HoldName
	holdText   = "# Written by kubectl-runtime; it goes when the switch of this node's runtime is over.\n[Unit]\nConditionPathExists=!" + host.HoldFile + "\n"
)

// hold stops the kubelet and keeps it stopped.
func holdKubelet(ctx context.Context, h *node.Host) error {
	if err := host.Replace(host.HoldFile, []byte("while kubectl-runtime switches this node\n"), 0o600); err != nil {
		return err
	}
	if err := host.Replace(holdDropIn, []byte(holdText), 0o644); err != nil {
		return err
	}
	if err := h.Systemd.DaemonReload(ctx); err != nil {
		return err
	}
	if err := h.Systemd.Stop(ctx, kubelet.Unit); err != nil {
		return err
	}
	state, err := h.Systemd.State(ctx, kubelet.Unit)
	if err == nil && state.Running() {
		err = fmt.Errorf("stop the kubelet: it is %s again", state.Active)
	}
	return err
}

// release starts the kubelet and waits until it says that it is healthy, and has said so for a while. The node is out of service: systemd,
// which takes up to a second to read its files, does so before the start only where that changes how the kubelet is started. Its hold is
// over with the file that the drop-in names, so that the drop-in goes while the kubelet starts.
func releaseKubelet(ctx context.Context, h *node.Host, found facts.Found, lasting time.Duration, report engine.Report) error {
	if err := host.Remove(host.HoldFile); err != nil {
		return err
	}
	if stale, err := h.Systemd.Stale(ctx, kubelet.Unit); err != nil {
		return err
	} else if stale {
		if err := h.Systemd.DaemonReload(ctx); err != nil {
			return err
		}
	}
	if err := dropEmptyState(found, report); err != nil {
		return err
	}
	if err := h.Systemd.Start(ctx, kubelet.Unit); err != nil {
		return err
	}
	if err := host.Remove(holdDropIn); err != nil {
		return err
	}
	if raw, ok := engine.LastMemo(h.Records(), kubeletStopID); ok {
		if err := with(kubeletStopID, raw, func(before host.UnitState) error {
			if !before.HadDropIns {
				host.RemoveDir(filepath.Dir(holdDropIn))
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if err := h.Systemd.DaemonReload(ctx); err != nil {
		return err
	}
	report.Progress("wait until the kubelet is healthy", 0, 0, "")
	if err := waitHealthy(ctx, h, found.HealthzURL, lasting); err != nil {
		return &host.UnitError{Unit: kubelet.Unit, Err: err, Log: h.Systemd.Log(ctx, kubelet.Unit)}
	}
	report.Progress("the kubelet is healthy", 0, 0, "")
	return nil
}

// maxRestarts is how often systemd may have to restart the kubelet before it is given up: one that cannot run on this runtime exits
// within a second each time, and the node need not wait for the deadline.
const maxRestarts = 5

// steady is how long the kubelet has to stay healthy where nothing else shows that it works: it answers before it has talked to the
// runtime.
const steady = 3 * time.Second

// exits looks whether the kubelet exits again and again.
type exits struct {
	systemd host.Systemd
	first   int // systemd's count when it was looked at first, -1 before
	// started is when the kubelet that runs now was started, in time since the boot; zero if none runs.
	started time.Duration
}

func (e *exits) check(ctx context.Context) error {
	p, err := e.systemd.Show(ctx, kubelet.Unit, "NRestarts", "MainPID", "ExecMainStartTimestampMonotonic")
	if err != nil {
		return err
	}
	e.started = 0
	if micros, err := strconv.ParseInt(p["ExecMainStartTimestampMonotonic"], 10, 64); err == nil && p["MainPID"] != "" && p["MainPID"] != "0" {
		e.started = time.Duration(micros) * time.Microsecond
	}
	// systemd before 235 does not count; the deadline then decides.
	restarts, err := strconv.Atoi(p["NRestarts"])
	if err != nil {
		return nil //nolint:nilerr // as said
	}
	if e.first < 0 {
		e.first = restarts
	}
	if restarts-e.first >= maxRestarts {
		return host.Permanent(fmt.Errorf("the kubelet exits each time it is started (%d times)", restarts-e.first))
	}
	return nil
}

func waitHealthy(ctx context.Context, h *node.Host, url string, lasting time.Duration) error {
	exits := &exits{systemd: h.Systemd, first: -1}
	var since time.Time
	return host.Poll(ctx, 250*time.Millisecond, func(ctx context.Context) error {
		if err := exits.check(ctx); err != nil {
			return err
		}
		if err := kubelet.Healthy(ctx, url); err != nil {
			since = time.Time{}
			return err
		}
		if since.IsZero() {
			since = time.Now()
		}
		if time.Since(since) < lasting {
			return errors.New("the kubelet has only just become healthy")
		}
		return nil
	})
}
