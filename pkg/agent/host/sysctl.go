package host

import (
	"fmt"
	"os"
	"strings"
)

// SysctlPath is where the kernel shows a setting, such as net.ipv4.ip_forward.
func SysctlPath(name string) string { return "/proc/sys/" + strings.ReplaceAll(name, ".", "/") }

// SetSysctl sets it until the next boot.
func SetSysctl(name, value string) error {
	if err := os.WriteFile(SysctlPath(name), []byte(value), 0o600); err != nil {
		return fmt.Errorf("set %s to %s: %w", name, value, err)
	}
	return nil
}
