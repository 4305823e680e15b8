package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

const (
	kubeletStopID   = "kubelet-stop"
	kubeletConfigID = "kubelet-config"
	kubeletStartID  = "kubelet-start"
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

func kubeletStop(h *node.Host) engine.Step {
	return step[host.UnitState]{
		id: kubeletStopID, title: "Stop the kubelet",
		record: func(ctx context.Context, _ engine.Report) (host.UnitState, error) {
			if err := node.Holdable(ctx, h, kubelet.Unit); err != nil {
				return host.UnitState{}, err
			}
			if err := refuseForeignNow(ctx, h); err != nil {
				return host.UnitState{}, err
			}
			return h.Systemd.State(ctx, kubelet.Unit)
		},
		apply: func(ctx context.Context, _ host.UnitState, _ engine.Report) error { return holdKubelet(ctx, h) },
		revert: func(ctx context.Context, _ host.UnitState, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			// Before its files were touched the kubelet can only be the one on Docker, and to stop it would need space for nothing.
			if _, touched := engine.LastMemo(h.Records(), kubeletConfigID); touched {
				if err := pods.NewStopper(h, found).EndStray(ctx, func(ctx context.Context) error { return holdKubelet(ctx, h) }, report); err != nil {
					return err
				}
			}
			// Undoing goes on where containerd's pods could not be stopped: then nobody may start the same ones on Docker.
			if _, stands := engine.Memo(h.Records(), kubeletStartID); stands {
				if err := pods.NewStopper(h, found).End(ctx, true); err != nil {
					return fmt.Errorf("the kubelet stays down: %w", err)
				}
			}
			if err := releaseKubelet(ctx, h, found, steady, report); err != nil {
				return err
			}
			// The node is back whether or not the API server can be asked.
			err = host.Within(ctx, time.Minute, func(ctx context.Context) error {
				return waitReady(ctx, h, found, readyWait{runtime: "docker://"}, report)
			})
			if err != nil {
				report.Warn("the kubelet is healthy again, but the API server does not show the node as Ready on Docker yet: " + err.Error())
			}
			return nil
		},
	}
}

func kubeletConfig(h *node.Host) engine.Step {
	return step[[]host.Change]{
		id: kubeletConfigID, title: "Point the kubelet at containerd",
		record: func(context.Context, engine.Report) ([]host.Change, error) {
			files, err := desired.KubeletFiles(h)
			if err != nil {
				return nil, err
			}
			return changesOf(h, files)
		},
		files: func(context.Context) ([]desired.File, error) { return desired.KubeletFiles(h) },
		apply: func(ctx context.Context, changes []host.Change, report engine.Report) error {
			for _, change := range changes {
				if err := backups(h).Apply(change); err != nil {
					return err
				}
			}
			report.Progress(pathsOf(changes), 0, 0, "")
			return nil // one of them may be a unit file: what starts the kubelet has systemd read these anew
		},
		revertible: func(ctx context.Context, changes []host.Change) error {
			return errors.Join(undoable(h, changes), sameKubelet(ctx, h, changes))
		},
		revert: func(ctx context.Context, changes []host.Change, report engine.Report) error {
			if err := undoFiles(h, changes, report); err != nil {
				return err
			}
			return h.Systemd.DaemonReload(ctx)
		},
	}
}

// sameKubelet refuses to put a kubelet's files back that an upgrade has rewritten since: kubeadm takes out the flags that the new release
// does not know, and a kubelet that is given one of them exits.
func sameKubelet(ctx context.Context, h *node.Host, changes []host.Change) error {
	found, err := facts.Of(h)
	if err != nil {
		return err
	}
	edited := ""
	for _, change := range changes {
		if isEdited, err := change.Edited(); err != nil {
			return err
		} else if isEdited {
			edited = change.Path
		}
	}
	if edited == "" {
		return nil
	}
	setup, err := found.Kubelet()
	if err != nil {
		return err
	}
	now, err := kubelet.AtRest(ctx, h.Systemd)
	if err != nil || now.Version.Minor == setup.Version.Minor {
		return err
	}
	return node.Refuse("see what differs from the copy of before, in "+filepath.Join(h.RunDir, "files")+", and take the kubelet back by hand or leave it on containerd",
		"the kubelet was %s when it was switched, is %s now, and %s was edited since: with that file as it was before, the kubelet may not start",
		setup.Version, now.Version, edited)
}

type startMemo struct {
	Started time.Time `json:"started"`
}

func kubeletStart(h *node.Host) engine.Step {
	return step[startMemo]{
		id: kubeletStartID, title: "Start the kubelet on containerd",
		record: func(context.Context, engine.Report) (startMemo, error) { return startMemo{time.Now().UTC()}, nil },
		apply: func(ctx context.Context, _ startMemo, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			setup, err := found.Kubelet()
			if err != nil {
				return err
			}
			if setup.Version.Minor <= 20 {
				if err := removeDockerLogLinks("/var/log/pods"); err != nil {
					return err
				}
			}
			lasting := steady
			if found.Kubeconfig != "" {
				lasting = 0 // node-ready comes next, and shows more
			}
			end := answerForDocker(setup.Version, cadvisorSocket, report)
			defer end()
			return pods.WhileAnswering(ctx, h, found, func(ctx context.Context) error { return releaseKubelet(ctx, h, found, lasting, report) })
		},
		revert: func(ctx context.Context, _ startMemo, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			if err := holdKubelet(ctx, h); err != nil {
				return err
			}
			return pods.NewStopper(h, found).Stop(ctx, report)
		},
	}
}

// removeDockerLogLinks removes dockershim's links from pods' log directories. Kubelets up to 1.20 name the first log of a container
// 0.log again, and containerd would write through the link into Docker's file. Docker keeps the logs.
func removeDockerLogLinks(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*", "*", "*.log"))
	if err != nil {
		return err
	}
	for _, log := range logs {
		info, err := os.Lstat(log)
		if err != nil || info.Mode().Type() != os.ModeSymlink {
			continue
		}
		if err := host.Remove(log); err != nil {
			return err
		}
	}
	return nil
}
