package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tempPath is where the content of a file is written before it takes the file's name. It is always the same, so that what an agent left that
// was killed in between is found again: by the same change, or by its undo.
func tempPath(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".kubectl-runtime")
}

func removeTemp(path string) error {
	if err := unix.Unlink(tempPath(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "remove", Path: tempPath(path), Err: err}
	}
	return nil
}

// replace puts a file with this content and state in place of what is at path, in one instant and lastingly.
func replace(path string, content []byte, s State) (err error) {
	dir := filepath.Dir(path)
	if err := removeTemp(path); err != nil {
		return err
	}
	temp, err := os.OpenFile(tempPath(path), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = temp.Close()
			_ = unix.Unlink(temp.Name())
		}
	}()
	if _, err := temp.Write(content); err != nil {
		return err
	}
	if err := setState(temp, s); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// setState sets owner before mode, since chown drops the setuid bit, and the time last.
func setState(file *os.File, s State) error {
	if err := file.Chown(s.UID, s.GID); err != nil {
		return err
	}
	if err := unix.Fchmod(int(file.Fd()), s.Mode); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	for name, value := range s.Xattrs {
		if err := unix.Lsetxattr(file.Name(), name, value, 0); err != nil {
			return fmt.Errorf("set extended attribute %s: %w", name, err)
		}
	}
	if s.ModTime.IsZero() {
		return nil
	}
	return os.Chtimes(file.Name(), s.ModTime, s.ModTime)
}

// keepBeside links, so that the file is never gone, and takes a name that nothing has: what an earlier undo kept stays.
func keepBeside(path string) (string, error) {
	now, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	for n := 1; ; n++ {
		beside := path + EditedSuffix
		if n > 1 {
			beside += fmt.Sprintf("-%d", n)
		}
		if kept, err := os.Lstat(beside); err == nil && os.SameFile(kept, now) {
			return beside, nil // by an undo that did not get any further
		}
		err := os.Link(path, beside)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		return beside, SyncDir(filepath.Dir(path))
	}
}

func remove(path string) error {
	if err := unix.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	if err := removeTemp(path); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return SyncDir(filepath.Dir(path))
}
