package nodetest

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// InNetworkNamespace gives the test the settings of a network of its own, all as after a boot.
func InNetworkNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // for good: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}
