package host

import (
	"os"
	"strings"
)

// BootID is the kernel's name for the time since the host was started, empty if it does not have one.
func BootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}
