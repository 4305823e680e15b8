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
	// sysctlFile sorts behind 99-sysctl.conf, which is /etc/sysctl.conf: dockerd, too, turned on what that turns off.
	sysctlFile  = "/etc/sysctl.d/zz-kubectl-runtime.conf"
	modulesFile = "/etc/modules-load.d/kubectl-runtime.conf"

	bridgeModule  = "br_netfilter"
	bridgeSysctls = "net.bridge." // of that module
)

// wantedSysctls are what dockerd may have been the one to set (libnetwork's bridge driver): without Docker they would be back at 0
// after the next boot, and pods without a network. The last is of RHEL 7 alone, where dockerd sets it (moby daemon/daemon_linux.go,
// setMayDetachMounts): without it pods hang in Terminating.
var wantedSysctls = []string{
	"net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables", "fs.may_detach_mounts",
}

// kernelSettings are those of the kernel that pods rely on, as they were while Docker ran.
type kernelSettings struct {
	// On are the wanted ones that were 1.
	On []string `json:"on"`
	// Bridge: the module br_netfilter was loaded.
	Bridge bool `json:"bridge,omitempty"`
}

// nodeSysctls keeps for the next boot what held while Docker ran. After a reboot since then, which has started no Docker any more, it sets
// that anew; otherwise it sets nothing.
func nodeSysctls(h *Host) engine.Step {
	return step[[]host.Change]{
		id: "node-sysctls", title: "Keep the kernel settings that pods rely on",
		record: func(context.Context, engine.Report) ([]host.Change, error) {
			files, err := sysctlFiles(h)
			if err != nil {
				return nil, err
			}
			changes, err := changesOf(h, files)
			if err == nil && len(changes) == 0 {
				err = engine.Skip("nothing to keep")
			}
			return changes, err
		},
		files: func(context.Context) ([]plannedFile, error) { return sysctlFiles(h) },
		apply: func(ctx context.Context, changes []host.Change, report engine.Report) error {
			for _, change := range changes {
				if err := backups(h).Apply(change); err != nil {
					return err
				}
			}
			settings, err := kernelBefore(h)
			if err != nil {
				return err
			}
			setKernel(ctx, h, settings, report)
			report.Progress(pathsOf(changes), 0, 0, "")
			return nil
		},
		revertible: func(_ context.Context, changes []host.Change) error { return undoable(h, changes) },
		revert: func(_ context.Context, changes []host.Change, report engine.Report) error {
			return undoFiles(h, changes, report)
		},
	}
}

// kernelSettings returns what the inspection found, or what holds now where an older agent made that.
func kernelBefore(h *Host) (kernelSettings, error) {
	found, err := factsOf(h)
	if err != nil {
		return kernelSettings{}, err
	}
	if found.Kernel == nil {
		return readKernel(readSysctl), nil
	}
	return *found.Kernel, nil
}

func sysctlFiles(h *Host) ([]plannedFile, error) {
	settings, err := kernelBefore(h)
	if err != nil {
		return nil, err
	}
	sysctls, modules := settings.files()
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
	data, err := os.ReadFile(host.SysctlPath(name))
	return strings.TrimSpace(string(data)), err == nil
}

func readKernel(read func(name string) (string, bool)) kernelSettings {
	settings := kernelSettings{On: []string{}}
	for _, name := range wantedSysctls {
		value, ok := read(name)
		if ok && strings.HasPrefix(name, bridgeSysctls) {
			settings.Bridge = true
		}
		if ok && value == "1" {
			settings.On = append(settings.On, name)
		}
	}
	return settings
}

// files returns the two files' contents, nil for one that is not needed.
func (s kernelSettings) files() (sysctls, modules []byte) {
	const head = "# Written by kubectl-runtime: Docker may have set this, and it no longer starts on this node.\n"
	for _, name := range s.On {
		if sysctls == nil {
			sysctls = []byte(head)
		}
		sysctls = fmt.Appendf(sysctls, "%s = 1\n", name)
	}
	modules = []byte(head + "overlay\n")
	if s.Bridge {
		modules = append(modules, bridgeModule+"\n"...)
	}
	return sysctls, modules
}

// setKernel sets what was on and is not any more.
func setKernel(ctx context.Context, h *Host, settings kernelSettings, report engine.Report) {
	for _, name := range settings.On {
		value, there := readSysctl(name)
		if value == "1" {
			continue
		}
		if !there && strings.HasPrefix(name, bridgeSysctls) {
			if _, err := h.Runner.Run(ctx, "modprobe", bridgeModule); err != nil {
				report.Warn(fmt.Sprintf("load %s: %v", bridgeModule, err))
			}
		}
		if err := host.SetSysctl(name, "1"); err != nil {
			report.Warn(err.Error())
			continue
		}
		report.Info(name + " is on again: Docker had set it, and has not been started since the node was rebooted")
	}
}

func pathsOf(changes []host.Change) string {
	var paths []string
	for _, change := range changes {
		paths = append(paths, change.Path)
	}
	return strings.Join(paths, ", ")
}
