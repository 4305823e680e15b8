package host

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	spareName  = ".kubectl-runtime-spare"
	spareParts = 8
	sparePart  = 1 << 20
	// minFree and minInodes are what a file system that is written to needs beside the spare space.
	minFree   = 32 << 20
	minInodes = 64
)

// Spare is space held back on each of some file systems while a phase is open, in files that are removed one by one when a disk
// is full: what the journal needs to go on, and what the undo needs to put files back.
type Spare struct{ dirs []string }

// NewSpare holds space back in those of the directories that exist, once per file system. It takes nothing yet.
func NewSpare(dirs ...string) Spare {
	var s Spare
	seen := map[uint64]bool{}
	for _, dir := range dirs {
		var stat unix.Stat_t
		if unix.Stat(dir, &stat) != nil || seen[stat.Dev] {
			continue
		}
		seen[stat.Dev] = true
		s.dirs = append(s.dirs, dir)
	}
	return s
}

// Enough reports whether Take would find enough space. It only looks.
func (s Spare) Enough() error {
	for _, dir := range s.dirs {
		if err := enoughFree(dir); err != nil {
			return err
		}
	}
	return nil
}

// Take fills the spare space, lastingly. Its error is for the person who has to free space; nothing is left behind then.
func (s Spare) Take() error {
	for _, dir := range s.dirs {
		err := enoughFree(dir)
		if err == nil {
			err = takeParts(filepath.Join(dir, spareName))
		}
		if err != nil {
			return errors.Join(err, s.Drop())
		}
	}
	return nil
}

func enoughFree(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look for space in %s: %w", dir, err)
	}
	free := int64(fs.Bavail) * fs.Bsize //nolint:gosec // no file system is that large
	if need := int64(minFree + spareParts*sparePart); free < need {
		return &spaceError{fmt.Errorf("the file system of %s has %d MiB free, and the switch needs %d MiB there", dir, free>>20, need>>20)}
	}
	if fs.Files > 0 && fs.Ffree < minInodes {
		return &spaceError{fmt.Errorf("the file system of %s has room for %d more files, and the switch needs %d", dir, fs.Ffree, minInodes)}
	}
	return nil
}

type spaceError struct{ error }

// NoSpaceHint says what a person can do about a full disk.
const NoSpaceHint = "free some space on the node, then ask again"

func (*spaceError) Hint() string { return NoSpaceHint }

// takeParts writes what no file system can compress away.
func takeParts(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("hold space back: %w", err)
	}
	content := make([]byte, sparePart)
	for i := range content {
		content[i] = byte(rand.Uint32()) //nolint:gosec // any bytes will do
	}
	for part := range spareParts {
		path := filepath.Join(dir, fmt.Sprint(part))
		if info, err := os.Stat(path); err == nil && info.Size() == sparePart {
			continue
		}
		if err := Replace(path, content, 0o600); err != nil {
			return fmt.Errorf("hold space back: %w", err)
		}
	}
	return nil
}

// Release gives back a part on each file system and reports whether there was one.
func (s Spare) Release() bool {
	released := false
	for _, dir := range s.dirs {
		dir = filepath.Join(dir, spareName)
		parts, err := os.ReadDir(dir)
		if err != nil || len(parts) == 0 {
			continue
		}
		if unix.Unlink(filepath.Join(dir, parts[len(parts)-1].Name())) == nil {
			released = true
			_ = SyncDir(dir) // the space is there for the next write even if this fails
		}
	}
	return released
}

// Drop gives all of it back.
func (s Spare) Drop() error {
	var errs []error
	for _, dir := range s.dirs {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, spareName)))
	}
	return errors.Join(errs...)
}

// NoSpace reports whether an error says that a disk, or the share of it that one may use, is full.
func NoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
