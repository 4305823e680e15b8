package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
)

// killMode is what systemd does with a running containerd's control group when it restarts it: systemd.kill(5).
type killMode struct {
	mode string
	// from says where the mode is set.
	from string
	// shims are the shims in the control group. Containers live and die with their shims.
	shims []host.Process
}

// killModeHint has containerd's unit in order without a restart: systemd reads the mode when it stops the unit.
const killModeHint = "write the lines [Service] and KillMode=process to /etc/systemd/system/" + containerdUnit + ".d/zz-killmode.conf, and run systemctl daemon-reload"

// containerdKillMode returns nil if containerd does not run.
func containerdKillMode(ctx context.Context, h *Host, proc string) (*killMode, error) {
	p, err := h.Systemd.Show(ctx, containerdUnit, "MainPID", "ControlGroup", "KillMode", "FragmentPath", "DropInPaths")
	if err != nil {
		return nil, err
	}
	if pid, _ := strconv.Atoi(p["MainPID"]); pid == 0 {
		return nil, nil
	}
	k := &killMode{mode: p["KillMode"], from: "by systemd's default, since neither " + p["FragmentPath"] + " nor a drop-in sets it"}
	for _, path := range append([]string{p["FragmentPath"]}, strings.Fields(p["DropInPaths"])...) {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // systemd has read it, and was not told yet that it is gone
		}
		if line := lineOf(string(text), "KillMode"); line > 0 {
			k.from = fmt.Sprintf("%s:%d", path, line)
		}
	}
	all, err := host.Processes(proc)
	if err != nil {
		return nil, err
	}
	for _, process := range all {
		if isShim(process) && host.InServiceCgroup(process.Cgroup, p["ControlGroup"]) {
			k.shims = append(k.shims, process)
		}
	}
	return k, nil
}

// lineOf is the number of the line that sets a key of [Service] last, 0 if none does.
func lineOf(text, key string) int {
	section, found, n := "", 0, 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
		}
		if name, _, ok := strings.Cut(line, "="); ok && section == "[Service]" && strings.TrimSpace(name) == key {
			found = n
		}
	}
	return found
}

// isShim goes by the name, or by what containerd tells each shim, whatever its name.
func isShim(process host.Process) bool {
	name := filepath.Base(process.Args[0])
	flag := func(name string) bool { return kubelet.FlagOf(process.Args, name) != "" }
	return strings.HasPrefix(name, "containerd-shim") || strings.HasPrefix(name, "docker-containerd-shim") ||
		flag("namespace") && flag("address") && flag("id")
}

// restartable refuses to restart a containerd where that would kill running containers. Docker and the kubelet would go on showing them as
// running.
func (k *killMode) restartable() error {
	switch {
	case k == nil || k.mode == "process":
		return nil
	case k.mode == "none":
		return refuse(killModeHint, "%s has KillMode=none (%s): a restart would leave the old containerd running", containerdUnit, k.from)
	case len(k.shims) > 0:
		return refuse(killModeHint, "%s has KillMode=%s (%s): a restart of containerd, which has to read its configuration, would kill %d shim(s) and their containers, such as %s",
			containerdUnit, k.mode, k.from, len(k.shims), processNames(k.shims[:1]))
	}
	return nil
}

// lookAtKillMode finds a containerd that cannot be restarted while the node is in service.
func (i *inspection) lookAtKillMode(ctx context.Context) error {
	k, err := containerdKillMode(ctx, i.h, proc)
	if err != nil {
		return err
	}
	if err := k.restartable(); err != nil {
		return err
	}
	if k != nil && k.mode != "process" {
		i.warn("%s has KillMode=%s (%s): once the node's pods run on containerd, each restart of it, as by an upgrade, kills them; %s",
			containerdUnit, k.mode, k.from, killModeHint)
	}
	return nil
}

// restartContainerdBack is restartContainerd for an undo. A containerd that cannot be restarted safely runs on with what it has read.
func restartContainerdBack(ctx context.Context, h *Host, report engine.Report) error {
	err := restartContainerd(ctx, h, report)
	var refused *refusal
	if errors.As(err, &refused) {
		report.Warn("containerd was not restarted and still has the configuration of the switch: " + err.Error() + "; " + refused.hint + ", then restart it")
		return nil
	}
	return err
}
