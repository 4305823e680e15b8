package host

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// SyncFileSystems writes out all that is yet to be written to the file systems of the paths that exist, once each: what programs wrote that
// do not do it themselves, such as Docker, containerd and rpm.
func SyncFileSystems(paths ...string) error {
	seen := map[uint64]bool{}
	for _, path := range paths {
		var stat unix.Stat_t
		if err := unix.Stat(path, &stat); errors.Is(err, unix.ENOENT) || seen[stat.Dev] {
			continue
		}
		seen[stat.Dev] = true
		if err := syncFileSystem(path); err != nil {
			return fmt.Errorf("write out the file system of %s: %w", path, err)
		}
	}
	return nil
}

func syncFileSystem(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// SyncFile makes a file's content last.
func SyncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// SyncDir makes the names in a directory last.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
