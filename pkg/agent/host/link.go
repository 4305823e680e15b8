package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Link makes a symbolic link of the agent's own. Anything else that is at path stays, and is an error.
func Link(path, target string) error {
	if is, err := os.Readlink(path); err == nil && is == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // below /run, for all to read
		return fmt.Errorf("link %s: %w", path, err)
	}
	if err := os.Symlink(target, path); err != nil {
		return fmt.Errorf("link %s: %w", path, err)
	}
	return nil
}

// Unlink removes a link that Link made; anything else stays.
func Unlink(path, target string) error {
	is, err := os.Readlink(path)
	if err != nil || is != target {
		return nil //nolint:nilerr // there is none, or it is no link
	}
	if err := unix.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove link %s: %w", path, err)
	}
	return nil
}
