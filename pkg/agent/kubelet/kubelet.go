// Package kubelet finds the host's kubelet, works out where its flags and configuration come from, and plans the edits that
// make it use another runtime. It also asks the kubelet, and with the kubelet's own credentials the API server, how the
// node is. It changes nothing: the agent's steps apply what it plans.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// Unit is the kubelet's systemd unit.
const Unit = "kubelet.service"

// ParseVersion reads "Kubernetes v1.23.17", as `kubelet --version` prints it, or the version alone.
func ParseVersion(text string) (version.Version, error) {
	v, ok := version.Parse(strings.TrimPrefix(strings.TrimSpace(text), "Kubernetes "))
	if !ok || v.Major != 1 {
		return version.Version{}, fmt.Errorf("kubelet version %q is not understood", text)
	}
	return v, nil
}

// ErrInContainer is returned for a kubelet that is itself a Docker container, as in RKE1.
var ErrInContainer = errors.New("the kubelet runs in a Docker container")

// Find finds the running kubelet of the unit kubelet.service and how it is set up.
func Find(ctx context.Context, systemd host.Systemd, proc string) (Setup, error) {
	p, err := systemd.Show(ctx, Unit, "LoadState", "MainPID", "FragmentPath", "DropInPaths", "NeedDaemonReload")
	if err != nil {
		return Setup{}, err
	}
	pid, _ := strconv.Atoi(p["MainPID"])
	if p["LoadState"] != "loaded" || pid == 0 {
		return Setup{}, notAService(proc, p["LoadState"])
	}
	process, err := host.ReadProcess(proc, pid)
	if err != nil {
		return Setup{}, fmt.Errorf("find kubelet: %w", err)
	}
	if p["NeedDaemonReload"] == "yes" {
		return Setup{}, fmt.Errorf("find kubelet: its unit files changed since systemd read them: run systemctl daemon-reload and restart the kubelet")
	}
	out, err := systemd.Run.Run(ctx, program(proc, pid, process.Args), "--version")
	if err != nil {
		return Setup{}, fmt.Errorf("find kubelet's version: %w", err)
	}
	version, err := ParseVersion(out)
	if err != nil {
		return Setup{}, err
	}
	return Setup{
		Version:       version,
		Args:          process.Args,
		UnitFiles:     append([]string{p["FragmentPath"]}, strings.Fields(p["DropInPaths"])...),
		Read:          os.ReadFile,
		ListConfigDir: ListConfigDir,
	}, nil
}

// program is the file that a process runs, by the name it was called by where that still is the same file: hyperkube and its like
// choose a component by it.
func program(proc string, pid int, args []string) string {
	exe := fmt.Sprintf("%s/%d/exe", proc, pid)
	if len(args) == 0 || !filepath.IsAbs(args[0]) {
		return exe
	}
	running, err := os.Stat(exe)
	if err != nil {
		return exe
	}
	if named, err := os.Stat(args[0]); err == nil && os.SameFile(running, named) {
		return args[0]
	}
	return exe
}

// notAService says why there is no kubelet.service that runs.
func notAService(proc, load string) error {
	processes, err := host.FindProcesses(proc, "kubelet")
	if err != nil {
		return fmt.Errorf("find kubelet: %w", err)
	}
	for _, p := range processes {
		if strings.Contains(p.Cgroup, "docker") {
			return fmt.Errorf("find kubelet: %w (pid %d)", ErrInContainer, p.PID)
		}
	}
	if len(processes) > 0 {
		return fmt.Errorf("find kubelet: it runs as process %d (%s), but not as the systemd unit %s", processes[0].PID, processes[0].Exe, Unit)
	}
	return fmt.Errorf("find kubelet: no kubelet runs on this host (unit %s is %s)", Unit, load)
}
