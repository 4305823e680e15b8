package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
)

// KillMode is what systemd does with a running containerd's control group when it restarts it: systemd.kill(5).
type KillMode struct {
	// Mode is systemd's KillMode.
	// Mode is KillMode as systemd has it.
	Mode string
	// From says where the mode is set.
	From string
	// shims are the shims in the control group. Containers live and die with their shims.
	shims []host.Process
}

// KillModeHint has containerd's unit in order without a restart: systemd reads the mode when it stops the unit.
const KillModeHint = "write the lines [Service] and KillMode=process to /etc/systemd/system/" + ContainerdUnit + ".d/zz-killmode.conf, and run systemctl daemon-reload"

// ContainerdKillMode returns nil if containerd does not run.
func ContainerdKillMode(ctx context.Context, h *Host, proc string) (*KillMode, error) {
	p, err := h.Systemd.Show(ctx, ContainerdUnit, "MainPID", "ControlGroup", "KillMode", "FragmentPath", "DropInPaths")
	if err != nil {
		return nil, err
	}
	if pid, _ := strconv.Atoi(p["MainPID"]); pid == 0 {
		return nil, nil
	}
	k := &KillMode{Mode: p["KillMode"], From: "by systemd's default, since neither " + p["FragmentPath"] + " nor a drop-in sets it"}
	for _, path := range append([]string{p["FragmentPath"]}, strings.Fields(p["DropInPaths"])...) {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // systemd has read it, and was not told yet that it is gone
		}
		if line := lineOf(string(text), "KillMode"); line > 0 {
			k.From = fmt.Sprintf("%s:%d", path, line)
		}
	}
	all, err := host.Processes(proc)
	if err != nil {
		return nil, err
	}
	for _, process := range all {
		if IsShim(process) && host.InServiceCgroup(process.Cgroup, p["ControlGroup"]) {
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

// IsShim goes by the name, or by what containerd tells each shim, whatever its name.
func IsShim(process host.Process) bool {
	name := filepath.Base(process.Args[0])
	flag := func(name string) bool { return kubelet.FlagOf(process.Args, name) != "" }
	return strings.HasPrefix(name, "containerd-shim") || strings.HasPrefix(name, "docker-containerd-shim") ||
		flag("namespace") && flag("address") && flag("id")
}

// Restartable refuses to restart a containerd where that would kill running containers. Docker and the kubelet would go on showing them as
// running.
func (k *KillMode) Restartable() error {
	switch {
	case k == nil || k.Mode == "process":
		return nil
	case k.Mode == "none":
		return Refuse(KillModeHint, "%s has KillMode=none (%s): a restart would leave the old containerd running", ContainerdUnit, k.From)
	case len(k.shims) > 0:
		return Refuse(KillModeHint, "%s has KillMode=%s (%s): a restart of containerd, which has to read its configuration, would kill %d shim(s) and their containers, such as %s",
			ContainerdUnit, k.Mode, k.From, len(k.shims), host.ProcessNames(k.shims[:1]))
	}
	return nil
}
