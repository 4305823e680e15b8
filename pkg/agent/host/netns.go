package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// RemoveNetworkNamespace removes a network namespace that a runtime has given a path (such as /run/netns/cni-…), with what is in it unless a process
// uses it. One that does not exist, and that of a process, needs nothing.
func RemoveNetworkNamespace(path string) error {
	if path == "" || strings.HasPrefix(path, "/proc/") {
		return nil
	}
	var of unix.Statfs_t
	err := unix.Statfs(path, &of)
	for err == nil && of.Type == unix.NSFS_MAGIC { // it may be mounted more than once
		if err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err == nil {
			err = unix.Statfs(path, &of)
		}
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	return nil
}
