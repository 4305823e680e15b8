package adopt

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// view is one mount of a file system in which both Docker's layers and containerd's snapshots are seen. The kernel makes no hard link
// from one mount to another (fs/namei.c, do_linkat), even if they are of the same file system, and Docker mounts its overlay2
// directory over itself (daemon/graphdriver/overlay2, Init: mount.MakePrivate), as nodes may do with either data root.
type view struct {
	root *os.File
	// base is the view's root, from the file system's root on.
	base   string
	mounts []mountPoint
}

// links keeps the view in which links are made from layers to snapshots: it is the same for all of them.
type links struct {
	mu   sync.Mutex
	view *view
}

// Close ends the view.
func (l *links) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.view != nil {
		l.view.close()
		l.view = nil
	}
}

// between returns the view in which links can be made from one of the layers' directories to another directory.
func (l *links) between(from, to string) (*view, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.view == nil {
		v, err := openView(from, to)
		if err != nil {
			return nil, err
		}
		l.view = v
	}
	return l.view, nil
}

// mountPoint is a line of /proc/self/mountinfo.
type mountPoint struct {
	device string // "8:1"
	// root is what is mounted, from the file system's root on, and point where.
	root, point string
}

// readMounts parses /proc/self/mountinfo, described in proc_pid_mountinfo(5).
func readMounts(text string) []mountPoint {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var mounts []mountPoint
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 4 {
			mounts = append(mounts, mountPoint{device: fields[2], root: unescape.Replace(fields[3]), point: unescape.Replace(fields[4])})
		}
	}
	return mounts
}

// below returns what is left of path after dir.
func below(path, dir string) (string, bool) {
	if dir == "/" {
		return strings.TrimPrefix(path, "/"), strings.HasPrefix(path, "/")
	}
	rest, ok := strings.CutPrefix(path, dir)
	return strings.TrimPrefix(rest, "/"), ok && (rest == "" || rest[0] == '/')
}

// locate finds the mount that path, which has no links in it, is on, and its path from the file system's root on.
func locate(mounts []mountPoint, path string) (on mountPoint, inside string, ok bool) {
	for _, m := range mounts {
		if rest, covers := below(path, m.point); covers && len(m.point) >= len(on.point) {
			on, inside, ok = m, filepath.Join(m.root, rest), true
		}
	}
	return on, inside, ok
}

// common finds a mount that shows both paths, and can be reached.
func common(mounts []mountPoint, one, other string) (mountPoint, error) {
	first, from, ok := locate(mounts, one)
	second, to, okToo := locate(mounts, other)
	if !ok || !okToo || first.device != second.device {
		return mountPoint{}, unix.EXDEV
	}
	for _, m := range mounts {
		_, hasFrom := below(from, m.root)
		_, hasTo := below(to, m.root)
		if reached, _, _ := locate(mounts, m.point); m.device == first.device && hasFrom && hasTo && reached == m {
			return m, nil
		}
	}
	return mountPoint{}, unix.EXDEV
}

// Linkable tells whether files of one directory can get names in the other: both are on one file system, and some mount shows both.
func Linkable(from, to string) bool {
	_, _, err := sharedMount(&from, &to)
	return err == nil
}

// sharedMount finds a mount that shows both directories, whose paths it makes free of links. Without one it is EXDEV.
func sharedMount(from, to *string) (mountPoint, []mountPoint, error) {
	for _, path := range []*string{from, to} {
		resolved, err := filepath.EvalSymlinks(*path)
		if err != nil {
			return mountPoint{}, nil, err
		}
		*path = resolved
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mountPoint{}, nil, fmt.Errorf("look for mounts: %w", err)
	}
	mounts := readMounts(string(text))
	shared, err := common(mounts, *from, *to)
	return shared, mounts, err
}

// openView makes a view of both directories and what is below them.
func openView(from, to string) (*view, error) {
	shared, mounts, err := sharedMount(&from, &to)
	if err != nil {
		return nil, err
	}
	root, err := cloneMount(shared.point, to)
	if err != nil {
		return nil, fmt.Errorf("mount %s once more: %w", shared.point, err)
	}
	return &view{root: root, base: shared.root, mounts: mounts}, nil
}

// open opens the directory path as the view shows it.
func (v *view) open(path string) (*os.File, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	_, inside, ok := locate(v.mounts, path)
	rest, shown := below(inside, v.base)
	if !ok || !shown {
		return nil, unix.EXDEV
	}
	if rest == "" {
		rest = "."
	}
	return openDir(fd(v.root), rest)
}

func (v *view) close() { _ = v.root.Close() }

// cloneMount opens a mount of its own of what is mounted at point, without what is mounted below. It needs a directory, at, to mount it
// on for a moment, in a mount namespace that only one thread sees: nobody else does, and nothing is left if the process is killed.
// (open_tree(2) would do the same, from Linux 5.2 on.)
func cloneMount(point, at string) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, and its namespace with it. The first thread of a process would stay.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			file, err := cloneMount(point, at) // on another thread, since this one is taken
			runtime.UnlockOSThread()
			done <- result{file, err}
			return
		}
		file, err := cloneInNamespace(point, at)
		done <- result{file, err}
	}()
	r := <-done
	return r.file, r.err
}

func cloneInNamespace(point, at string) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	// What is unmounted on the node is unmounted here, too, but nothing the other way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return nil, fmt.Errorf("make mounts slaves: %w", err)
	}
	if err := unix.Mount(point, at, "", unix.MS_BIND, ""); err != nil {
		return nil, err
	}
	n, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(n), point)
	// The open directory keeps the mount.
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}
