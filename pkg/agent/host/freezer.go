package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Freezer is where systemd mounts cgroup v1's freezer; cgroup v2 has none of its own.
const Freezer = "/sys/fs/cgroup/freezer"

// Thaw has the tasks of a cgroup of the freezer go on. In a frozen one of cgroup v1 a task does not even end by SIGKILL
// (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst); in one of cgroup v2 it does. A cgroup that is gone needs nothing.
func Thaw(freezer, cgroup string) error {
	file, err := os.OpenFile(filepath.Join(freezer, cgroup, "freezer.state"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("thaw cgroup %s: %w", cgroup, err)
	}
	_, err = file.WriteString("THAWED")
	if err := errors.Join(err, file.Close()); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("thaw cgroup %s: %w", cgroup, err)
	}
	return nil
}
