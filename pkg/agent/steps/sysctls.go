package steps

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

const (
	sysctlFile  = "/etc/sysctl.d/99-kubectl-runtime.conf"
	modulesFile = "/etc/modules-load.d/kubectl-runtime.conf"
)

// wantedSysctls are what dockerd may have been the one to set (libnetwork's bridge driver): without Docker they would be back at 0
// after the next boot, and pods without a network. The last is of RHEL 7 alone, where dockerd sets it (moby daemon/daemon_linux.go,
// setMayDetachMounts): without it pods hang in Terminating.
var wantedSysctls = []string{
	"net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables", "fs.may_detach_mounts",
}

// nodeSysctls keeps for the next boot what holds now. It sets nothing that is not set.
func nodeSysctls(h *Host) engine.Step {
	return step[[]host.Change]{
		id: "node-sysctls", title: "Keep the kernel settings that pods rely on",
		record: func(context.Context, engine.Report) ([]host.Change, error) {
			files, err := sysctlFiles()
			if err != nil {
				return nil, err
			}
			changes, err := h.changes(files)
			if err == nil && len(changes) == 0 {
				err = engine.Skip("nothing to keep")
			}
			return changes, err
		},
		files: func(context.Context) ([]plannedFile, error) { return sysctlFiles() },
		apply: func(_ context.Context, changes []host.Change, report engine.Report) error {
			for _, change := range changes {
				if err := h.files().Apply(change); err != nil {
					return err
				}
			}
			report.Progress(pathsOf(changes), 0, 0, "")
			return nil
		},
		revertible: h.undoable,
		revert: func(_ context.Context, changes []host.Change, report engine.Report) error {
			return h.undoFiles(changes, report)
		},
	}
}

func sysctlFiles() ([]plannedFile, error) {
	sysctls, modules := keepFor(readSysctl)
	var files []plannedFile
	for _, file := range []struct {
		path string
		data []byte
	}{{sysctlFile, sysctls}, {modulesFile, modules}} {
		if file.data == nil {
			continue
		}
		planned, err := toBe(file.path, file.data, 0)
		if err != nil {
			return nil, err
		}
		files = append(files, planned)
	}
	return files, nil
}

func readSysctl(name string) (string, bool) {
	data, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	return strings.TrimSpace(string(data)), err == nil
}

// keepFor returns the two files' contents, nil for one that is not needed.
func keepFor(read func(name string) (string, bool)) (sysctls, modules []byte) {
	const head = "# Written by kubectl-runtime: Docker may have set this, and it no longer starts on this node.\n"
	bridge := false
	for _, name := range wantedSysctls {
		value, ok := read(name)
		if ok && strings.HasPrefix(name, "net.bridge.") {
			bridge = true
		}
		if ok && value == "1" {
			if sysctls == nil {
				sysctls = []byte(head)
			}
			sysctls = fmt.Appendf(sysctls, "%s = 1\n", name)
		}
	}
	modules = []byte(head + "overlay\n")
	if bridge {
		modules = append(modules, "br_netfilter\n"...)
	}
	return sysctls, modules
}

func pathsOf(changes []host.Change) string {
	var paths []string
	for _, change := range changes {
		paths = append(paths, change.Path)
	}
	return strings.Join(paths, ", ")
}
