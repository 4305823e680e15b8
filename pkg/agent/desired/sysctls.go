package desired

import (
	"fmt"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

const (
	// SysctlFile sorts behind 99-sysctl.conf, which is /etc/sysctl.conf: dockerd, too, turned on what that turns off.
	SysctlFile  = "/etc/sysctl.d/zz-kubectl-runtime.conf"
	modulesFile = "/etc/modules-load.d/kubectl-runtime.conf"
)

// kernelFiles returns the two files' contents, nil for one that is not needed.
func kernelFiles(s facts.KernelSettings) (sysctls, modules []byte) {
	const head = "# Written by kubectl-runtime: Docker may have set this, and it no longer starts on this node.\n"
	for _, name := range s.On {
		if sysctls == nil {
			sysctls = []byte(head)
		}
		sysctls = fmt.Appendf(sysctls, "%s = 1\n", name)
	}
	modules = []byte(head + "overlay\n")
	if s.Bridge {
		modules = append(modules, facts.BridgeModule+"\n"...)
	}
	return sysctls, modules
}

// SysctlFiles are those that keep the kernel's settings over the next boot.
func SysctlFiles(h *node.Host) ([]File, error) {
	settings, err := Kernel(h)
	if err != nil {
		return nil, err
	}
	sysctls, modules := kernelFiles(settings)
	var files []File
	for _, file := range []struct {
		path string
		data []byte
	}{{SysctlFile, sysctls}, {modulesFile, modules}} {
		if file.data == nil {
			continue
		}
		planned, err := NewFile(file.path, file.data, 0)
		if err != nil {
			return nil, err
		}
		files = append(files, planned)
	}
	return files, nil
}

// Kernel returns what the inspection found, or what holds now where an older agent made the inspection.
func Kernel(h *node.Host) (facts.KernelSettings, error) {
	found, err := facts.Of(h)
	if err != nil {
		return facts.KernelSettings{}, err
	}
	if found.Kernel == nil {
		return facts.ReadKernel(facts.ReadSysctl), nil
	}
	return *found.Kernel, nil
}
