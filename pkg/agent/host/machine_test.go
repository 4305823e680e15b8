package host

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMachineID(t *testing.T) {
	root := t.TempDir()
	etc, dmi := filepath.Join(root, "etc"), filepath.Join(root, "sys/class/dmi/id")
	for _, dir := range []string{etc, dmi} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil || fs.Type == unix.TMPFS_MAGIC {
		t.Skipf("SKIPPED: the directory for tests is in memory, where no machine ID lasts (%v)", err)
	}
	if id := machineID(root); id != "" {
		t.Errorf("without anything: %q", id)
	}
	write(t, filepath.Join(dmi, "product_uuid"), "4C4C-AB\n", 0o600)
	if id := machineID(root); id != "firmware-4c4c-ab" {
		t.Errorf("without a machine ID: %q", id)
	}
	write(t, filepath.Join(etc, "machine-id"), "abc\n", 0o600)
	if id := machineID(root); id != "abc" {
		t.Errorf("a lasting machine ID: %q", id)
	}
	if err := syscall.Mount("tmpfs", etc, "tmpfs", 0, ""); err != nil {
		t.Skipf("SKIPPED: a machine ID that does not last cannot be tested without the right to mount: %v", err)
	}
	defer func() { _ = syscall.Unmount(etc, syscall.MNT_DETACH) }()
	write(t, filepath.Join(etc, "machine-id"), "of this boot\n", 0o600)
	if id := machineID(root); id != "firmware-4c4c-ab" {
		t.Errorf("a machine ID in memory: %q", id)
	}
}
