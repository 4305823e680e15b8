package facts

import (
	"os"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// KernelSettings are those of the kernel that pods rely on, as they were while Docker ran.
type KernelSettings struct {
	// On are the wanted ones that were 1.
	On []string `json:"on"`
	// Bridge: the module br_netfilter was loaded.
	Bridge bool `json:"bridge,omitempty"`
}

// ReadKernel reads the wanted settings with read, which returns false for one that the kernel does not have.
func ReadKernel(read func(name string) (string, bool)) KernelSettings {
	settings := KernelSettings{On: []string{}}
	for _, name := range WantedSysctls {
		value, ok := read(name)
		if ok && strings.HasPrefix(name, BridgeSysctls) {
			settings.Bridge = true
		}
		if ok && value == "1" {
			settings.On = append(settings.On, name)
		}
	}
	return settings
}

// ReadSysctl reads a setting of the running kernel; false if it does not have it.
func ReadSysctl(name string) (string, bool) {
	data, err := os.ReadFile(host.SysctlPath(name))
	return strings.TrimSpace(string(data)), err == nil
}

// WantedSysctls are what dockerd may have been the one to set (libnetwork's bridge driver): without Docker they would be back at 0 after
// the next boot, and pods without a network. The last is of RHEL 7 alone, where dockerd sets it (moby daemon/daemon_linux.go,
// setMayDetachMounts): without it pods hang in Terminating.
var WantedSysctls = []string{
	"net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables", "fs.may_detach_mounts",
}

// BridgeModule is the module that has the settings below BridgeSysctls.
const (
	BridgeModule  = "br_netfilter"
	BridgeSysctls = "net.bridge."
)
