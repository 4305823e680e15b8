package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// EditedSuffix is put on the name of a file that someone edited after us, when the undo keeps it beside the original; a second one gets
// "-2" behind it, and so on.
const EditedSuffix = ".kubectl-runtime-edited"

// State is a file as it was: what is needed to make it again.
type State struct {
	// Absent means that there was no file; the other fields are then unset.
	Absent  bool              `json:"absent,omitempty"`
	SHA256  string            `json:"sha256,omitempty"`
	Mode    uint32            `json:"mode,omitempty"` // permission bits, setuid, setgid and sticky, as in stat(2)
	UID     int               `json:"uid,omitempty"`
	GID     int               `json:"gid,omitempty"`
	ModTime time.Time         `json:"modTime,omitzero"`
	Xattrs  map[string][]byte `json:"xattrs,omitempty"`
}

// Change is one file's planned change: a step's memo. Old and new content lie in the run's directory, so that applying and
// undoing need nothing else.
type Change struct {
	// Path is the file itself, symbolic links resolved.
	Path string `json:"path"`
	Old  State  `json:"old"`
	// OldCopy is where the content from before lies, unless Old.Absent.
	OldCopy string `json:"oldCopy,omitempty"`
	// NewSHA256 and NewCopy are the content to be; NewAbsent means that the file is to be gone.
	NewAbsent bool   `json:"newAbsent,omitempty"`
	NewSHA256 string `json:"newSHA256,omitempty"`
	NewCopy   string `json:"newCopy,omitempty"`
	// NewMode are the permission bits of a file that did not exist; 0 means 0644. One that did loses those that are not in it.
	NewMode uint32 `json:"newMode,omitempty"`
	// MadeDirs are parents that did not exist, outermost first; the undo removes them if they are empty.
	MadeDirs []string `json:"madeDirs,omitempty"`
}

// Unchanged reports whether the change changes nothing.
func (c Change) Unchanged() bool {
	return c.Old.Absent == c.NewAbsent && (c.NewAbsent || c.Old.SHA256 == c.NewSHA256)
}

// Files plans, applies and undoes changes of files. Dir is the directory for copies, on a disk that survives a reboot.
type Files struct {
	Dir string
}

// Plan records the file at path as it is and what it is to become, without changing it. New content nil means that the
// file is to be removed. The content from before has to be old, as the caller read it (nil for absent), so that an edit in
// between is not lost.
func (f Files) Plan(path string, old, content []byte) (Change, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		resolved, err = path, nil
		if _, lerr := os.Lstat(path); lerr == nil {
			return Change{}, fmt.Errorf("back up %s: it is a dangling symbolic link", path)
		}
	}
	if err != nil {
		return Change{}, fmt.Errorf("back up %s: %w", path, err)
	}
	c := Change{Path: resolved}
	current, state, err := capture(resolved)
	if err != nil {
		return Change{}, fmt.Errorf("back up %s: %w", path, err)
	}
	if state.Absent != (old == nil) || !bytes.Equal(current, old) {
		return Change{}, fmt.Errorf("back up %s: it was changed while the agent looked at it; try again", path)
	}
	c.Old = state
	if !state.Absent {
		if c.OldCopy, err = f.keep(current); err != nil {
			return Change{}, fmt.Errorf("back up %s: %w", path, err)
		}
	}
	if content == nil {
		c.NewAbsent = true
		return c, nil
	}
	c.NewSHA256 = checksum(content)
	if c.NewCopy, err = f.keep(content); err != nil {
		return Change{}, fmt.Errorf("plan %s: %w", path, err)
	}
	for dir := filepath.Dir(resolved); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		if !Absent(dir) {
			return Change{}, fmt.Errorf("plan %s: its folder %s is a symbolic link that leads nowhere", path, dir)
		}
		c.MadeDirs = append([]string{dir}, c.MadeDirs...)
	}
	return c, nil
}

// keep stores content under its checksum.
func (f Files) keep(content []byte) (string, error) {
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(f.Dir, checksum(content))
	if kept, err := os.ReadFile(path); err == nil && bytes.Equal(kept, content) {
		return path, errors.Join(SyncFile(path), SyncDir(f.Dir))
	}
	return path, replace(path, content, State{Mode: 0o600, UID: os.Getuid(), GID: os.Getgid()})
}

// Apply makes the change, lastingly. A file that is neither as it was nor as it is to be was edited by someone since, and stays: an error.
func (f Files) Apply(c Change) error {
	err := c.apply()
	if err == nil {
		err = c.sync()
	}
	if err != nil {
		return fmt.Errorf("change %s: %w", c.Path, err)
	}
	return nil
}

func (c Change) apply() error {
	now, err := is(c.Path)
	if err != nil {
		return err
	}
	switch {
	case c.isNew(now):
		return nil
	case !c.isOld(now):
		return errors.New("someone edited it since the agent looked at it")
	case c.NewAbsent:
		return remove(c.Path)
	}
	content, err := readKept(c.NewCopy, c.NewSHA256)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o755); err != nil { //nolint:gosec // directories below /etc are for all to read
		return err
	}
	state := c.Old
	state.ModTime = time.Time{}
	if c.NewMode != 0 {
		state.Mode &= c.NewMode
	}
	if c.Old.Absent {
		state = State{Mode: 0o644, UID: os.Getuid(), GID: os.Getgid()}
		if c.NewMode != 0 {
			state.Mode = c.NewMode
		}
	}
	return replace(c.Path, content, state)
}

// sync makes the file, or that there is none, and the directories that were made for it last. It does so also for what is as it should be:
// an attempt that was killed may have changed it, and not have got as far as here.
func (c Change) sync() error {
	if err := SyncFile(c.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dirs := []string{filepath.Dir(c.Path)}
	for _, made := range c.MadeDirs {
		dirs = append(dirs, filepath.Dir(made))
	}
	for _, dir := range dirs {
		if err := SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Undo puts the file back as it was, lastingly: content, owner, mode, extended attributes and time of modification. One that someone
// edited after us is kept beside it under EditedSuffix, and its path returned.
func (f Files) Undo(c Change) (edited string, err error) {
	edited, err = c.undo()
	if err == nil {
		err = c.sync()
	}
	if err != nil {
		return edited, fmt.Errorf("restore %s: %w", c.Path, err)
	}
	return edited, nil
}

func (c Change) undo() (edited string, err error) {
	now, err := is(c.Path)
	if err != nil {
		return "", err
	}
	if c.isOld(now) && !c.isNew(now) {
		if err := removeTemp(c.Path); err != nil {
			return "", err
		}
		removeDirs(c)
		return "", nil
	}
	if !c.isNew(now) && now != "" {
		if edited, err = keepBeside(c.Path); err != nil {
			return "", fmt.Errorf("keep what someone edited: %w", err)
		}
	}
	if c.Old.Absent {
		if err := remove(c.Path); err != nil {
			return edited, err
		}
		removeDirs(c)
		return edited, nil
	}
	content, err := readKept(c.OldCopy, c.Old.SHA256)
	if err != nil {
		return edited, err
	}
	return edited, replace(c.Path, content, c.Old)
}

// Undoable checks that what Undo would need is there and whole.
func (f Files) Undoable(c Change) error {
	now, err := is(c.Path)
	if err == nil && !c.Old.Absent && !c.isOld(now) {
		_, err = readKept(c.OldCopy, c.Old.SHA256)
	}
	if err != nil {
		return fmt.Errorf("restore %s: %w", c.Path, err)
	}
	return nil
}

// Edited reports whether the file is neither as it was nor as it was to be.
func (c Change) Edited() (bool, error) {
	now, err := is(c.Path)
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", c.Path, err)
	}
	return !c.isOld(now) && !c.isNew(now), nil
}

// removeDirs removes the directories that were made for the file, as long as they are empty.
func removeDirs(c Change) {
	for i := len(c.MadeDirs) - 1; i >= 0; i-- {
		if !RemoveDir(c.MadeDirs[i]) {
			return
		}
	}
}

// isNew and isOld take a checksum, empty for a file that does not exist.
func (c Change) isNew(sum string) bool {
	return c.NewAbsent && sum == "" || !c.NewAbsent && sum == c.NewSHA256
}

func (c Change) isOld(sum string) bool {
	return c.Old.Absent && sum == "" || !c.Old.Absent && sum == c.Old.SHA256
}

func is(path string) (string, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return checksum(content), nil
}

func readKept(path, sum string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the copy: %w", err)
	}
	if checksum(content) != sum {
		return nil, &damagedError{path, sum}
	}
	return content, nil
}

type damagedError struct{ path, sum string }

func (e *damagedError) Error() string { return fmt.Sprintf("the copy %s is damaged", e.path) }

// Hint says what a person can do.
func (e *damagedError) Hint() string {
	return fmt.Sprintf("put the file as it was before at %s, its SHA-256 is %s, then ask again", e.path, e.sum)
}

func checksum(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func capture(path string) ([]byte, State, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, State{Absent: true}, nil
	}
	if err != nil {
		return nil, State{}, err
	}
	if !info.Mode().IsRegular() {
		return nil, State{}, fmt.Errorf("it is not a regular file but %s", info.Mode().Type())
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, State{}, errors.New("no stat")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, State{}, err
	}
	xattrs, err := readXattrs(path)
	if err != nil {
		return nil, State{}, err
	}
	return append([]byte{}, content...), State{
		SHA256: checksum(content), Mode: stat.Mode & 0o7777, UID: int(stat.Uid), GID: int(stat.Gid),
		ModTime: info.ModTime(), Xattrs: xattrs,
	}, nil
}

func readXattrs(path string) (map[string][]byte, error) {
	size, err := unix.Llistxattr(path, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(path, names); err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	xattrs := map[string][]byte{}
	for name := range bytes.SplitSeq(bytes.TrimRight(names[:size], "\x00"), []byte{0}) {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, string(name), value)
		if err != nil {
			return nil, fmt.Errorf("read extended attribute %s: %w", name, err)
		}
		xattrs[string(name)] = value[:n]
	}
	return xattrs, nil
}

// Replace writes a file of the agent's own, with its parents, in one instant and lastingly.
func Replace(path string, content []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // the agent's unit and drop-in lie below /etc
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := replace(path, content, State{Mode: uint32(mode.Perm()), UID: os.Getuid(), GID: os.Getgid()}); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Remove removes a file of the agent's own lastingly; one that does not exist is fine.
func Remove(path string) error {
	if err := remove(path); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// ClearSocket makes room at a path where a daemon is about to listen. A runtime that starts a pod with a hostPath of no type makes a
// directory of a socket that is not there, and then no daemon can bind to it. Only an empty one is removed; anything else stays.
func ClearSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil
	}
	if err == nil {
		err = unix.Rmdir(path)
	}
	if err != nil {
		return fmt.Errorf("make room for socket %s: %w", path, err)
	}
	return nil
}

// RemoveDir removes a directory if it is empty, lastingly, and reports whether it did. A symbolic link to a directory stays, whereas
// os.Remove would remove the link.
func RemoveDir(path string) bool {
	if err := unix.Rmdir(path); err != nil {
		return false
	}
	_ = SyncDir(filepath.Dir(path)) // an empty directory that comes back after a power loss does no harm
	return true
}

// Absent reports whether there is nothing at path.
func Absent(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// ReadFile returns nil for a file that does not exist.
func ReadFile(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && data == nil {
		data = []byte{}
	}
	return data, err
}

// Existing returns the nearest directory that exists.
func Existing(path string) string {
	for Absent(path) && path != filepath.Dir(path) {
		path = filepath.Dir(path)
	}
	return path
}
