package unit

import (
	"context"
	"fmt"
	"os"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// unitText: started at boot, too, before the kubelet. It does not wait for Docker, whose unit has no time limit at its start: steps start
// and stop what they need, and the deadline has to act whatever hangs. A stop does not undo anything; see engine.ErrInterrupted.
const unitText = `# Written by kubectl-runtime while it works on this node; it goes when that is done.
[Unit]
Description=Move this node to another container runtime
Documentation=https://github.com/kubectl-runtime/kubectl-runtime
After=dbus.service containerd.service
Before=kubelet.service
RequiresMountsFor=%[1]s
StartLimitIntervalSec=0

[Service]
Type=simple
ExecStart=%[2]s run
Restart=on-failure
RestartSec=1
RestartPreventExitStatus=%[3]d
TimeoutStopSec=20
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`

// Install writes the unit and has it come up at boot.
func Install(ctx context.Context, l Layout, systemd host.Systemd, program string) error {
	text := fmt.Sprintf(unitText, host.Dir, program, ExitPermanent)
	if now, err := os.ReadFile(l.unitPath()); err != nil || string(now) != text {
		if err := host.Replace(l.unitPath(), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return host.EnsureEnabled(ctx, systemd, host.Unit, host.UnitPath) // which has systemd read its files again where it has to
}

// uninstall removes the unit; the process that it runs goes on.
func uninstall(ctx context.Context, l Layout, systemd host.Systemd) error {
	if host.Absent(l.unitPath()) {
		return nil
	}
	if err := host.Disable(systemd, host.Unit); err != nil {
		return err
	}
	if err := host.Remove(l.unitPath()); err != nil {
		return err
	}
	return systemd.DaemonReload(ctx)
}
