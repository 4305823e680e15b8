package adopt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tree re-makes a layer's directory: directories again, everything else as hard links or, with copies set, as copies. It works
// relative to open directories only, so that neither long paths nor an image's symbolic links matter.
type tree struct {
	copies bool
	// made are the paths below the new root of files that have several names, where copies are made.
	made map[inode]string
	to   int // the new root
}

type inode struct{ dev, ino uint64 }

// opener opens a directory by its path.
type opener func(path string) (*os.File, error)

// directly opens a directory where its path leads to.
func directly(path string) (*os.File, error) { return openDir(unix.AT_FDCWD, path) }

// mirror fills the directory to, which exists and is empty, with the content of from, and gives it from's owner, mode, extended
// attributes and times.
func mirror(ctx context.Context, open opener, from, to string, copies bool) error {
	src, err := open(from)
	if err != nil {
		return fmt.Errorf("open %s: %w", from, err)
	}
	defer func() { _ = src.Close() }()
	dst, err := open(to)
	if err != nil {
		return fmt.Errorf("open %s: %w", to, err)
	}
	defer func() { _ = dst.Close() }()
	t := &tree{copies: copies, made: map[inode]string{}, to: fd(dst)}
	return t.fill(ctx, src, dst, "")
}

func fd(f *os.File) int { return int(f.Fd()) }

// openDir opens a directory without following a link at its end, and, where that is allowed, without a trace in its access time.
func openDir(at int, name string) (*os.File, error) {
	n, err := openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	// Under this name the os package finds the directory's entries whatever its path is.
	return os.NewFile(uintptr(n), "/proc/self/fd/"+strconv.Itoa(n)), nil
}

func openat(at int, name string, flags int) (int, error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
	n, err := unix.Openat(at, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		n, err = unix.Openat(at, name, flags, 0)
	}
	return n, err
}

// fill re-makes src's entries in dst and then gives dst src's properties: times last, since new entries change them, and a default
// ACL late, so that no entry inherits it.
func (t *tree) fill(ctx context.Context, src, dst *os.File, path string) error {
	var stat unix.Stat_t
	if err := unix.Fstat(fd(src), &stat); err != nil {
		return fmt.Errorf("stat /%s: %w", path, err)
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := src.ReadDir(4096)
		for _, entry := range entries {
			if err := t.entry(ctx, src, dst, entry, path+"/"+entry.Name()); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("list /%s: %w", path, err)
		}
	}
	return finish(src.Name(), dst.Name(), path, stat)
}

func (t *tree) entry(ctx context.Context, src, dst *os.File, entry fs.DirEntry, path string) error {
	name := entry.Name()
	if !entry.IsDir() {
		if err := t.file(src, dst, name, path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	}
	if err := unix.Mkdirat(fd(dst), name, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	from, err := openDir(fd(src), name)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { _ = from.Close() }()
	to, err := openDir(fd(dst), name)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { _ = to.Close() }()
	return t.fill(ctx, from, to, path)
}

func (t *tree) file(src, dst *os.File, name, path string) error {
	source := src.Name() + "/" + name
	var stat unix.Stat_t
	if t.copies || countsLinks(path) {
		if err := unix.Fstatat(fd(src), name, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if !t.copies && stat.Nlink != 1 {
		if _, err := attributes(source); err != nil {
			return err
		}
		return unix.Linkat(fd(src), name, fd(dst), name, 0)
	}
	key := inode{dev: stat.Dev, ino: stat.Ino}
	if stat.Nlink > 1 {
		if first, ok := t.made[key]; ok {
			return t.linkTo(first, dst, name)
		}
		t.made[key] = path
	}
	if err := copyNode(src, dst, name, stat); err != nil {
		return err
	}
	return finish(source, dst.Name()+"/"+name, path, stat)
}

// countsLinks tells whether programs refuse the file when it has several links, which overlayfs shows to containers: Debian's cron
// and cronie skip such tables (database.c, process_crontab: "NUMBER OF HARD LINKS > 1"). These are copied: they are few and small.
func countsLinks(path string) bool {
	return strings.HasPrefix(path, "/etc/cron") || strings.HasPrefix(path, "/var/spool/cron/")
}

// linkTo makes another name for a file that was copied before.
func (t *tree) linkTo(first string, dst *os.File, name string) error {
	elements := strings.Split(strings.TrimPrefix(first, "/"), "/")
	at, last := t.to, len(elements)-1
	for _, element := range elements[:last] {
		next, err := openat(at, element, unix.O_RDONLY|unix.O_DIRECTORY)
		if at != t.to {
			_ = unix.Close(at)
		}
		if err != nil {
			return err
		}
		at = next
	}
	err := unix.Linkat(at, elements[last], fd(dst), name, 0)
	if at != t.to {
		_ = unix.Close(at)
	}
	return err
}

// copyNode makes a file of the same type and content.
func copyNode(src, dst *os.File, name string, stat unix.Stat_t) error {
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return copyContent(src, dst, name, stat.Size)
	case unix.S_IFLNK:
		target, err := os.Readlink(src.Name() + "/" + name)
		if err != nil {
			return err
		}
		return unix.Symlinkat(target, fd(dst), name)
	default:
		return unix.Mknodat(fd(dst), name, stat.Mode, int(stat.Rdev)) //nolint:gosec // as the kernel gave it
	}
}

// copyContent copies a regular file and leaves its holes out.
func copyContent(src, dst *os.File, name string, size int64) error {
	n, err := openat(fd(src), name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	from := os.NewFile(uintptr(n), name)
	defer func() { _ = from.Close() }()
	if n, err = unix.Openat(fd(dst), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600); err != nil {
		return err
	}
	to := os.NewFile(uintptr(n), name)
	defer func() { _ = to.Close() }()
	if err := to.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		data, err := unix.Seek(fd(from), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but a hole is left
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(fd(from), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := from.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := to.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(to, from, hole-data); err != nil {
			return err
		}
		at = hole
	}
	return to.Close()
}

// finish gives what was made at to the properties of what is at from; both are paths whose last element is not followed unless it
// is below /proc/self/fd. The owner goes first: to change it clears setuid and file capabilities.
func finish(from, to, path string, stat unix.Stat_t) error {
	fail := func(what string, err error) error { return fmt.Errorf("%s of %s: %w", what, path, err) }
	follow := unix.AT_SYMLINK_NOFOLLOW
	link := stat.Mode&unix.S_IFMT == unix.S_IFLNK
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		// The name is that of the open directory below /proc, a link itself.
		follow, from, to = 0, from+"/.", to+"/."
	}
	if err := unix.Fchownat(unix.AT_FDCWD, to, int(stat.Uid), int(stat.Gid), follow); err != nil {
		return fail("set the owner", err)
	}
	if !link {
		if err := unix.Chmod(to, stat.Mode&0o7777); err != nil {
			return fail("set the mode", err)
		}
	}
	attrs, err := attributes(from)
	if err != nil {
		return fail("read the attributes", err)
	}
	for name, value := range attrs {
		if err := unix.Lsetxattr(to, name, value, 0); err != nil {
			return fail("set the attribute "+name, err)
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{stat.Atim, stat.Mtim}, follow); err != nil {
		return fail("set the times", err)
	}
	return nil
}

// attributes reads the extended attributes that a copy needs. Those with which overlayfs refers to other layers' files by path make
// a layer unsuitable; those that only speed a mount up (origin, impure, nlink, uuid) are left out.
func attributes(path string) (map[string][]byte, error) {
	var space [1024]byte
	list, n, err := space[:], 0, error(nil)
	for {
		n, err = unix.Llistxattr(path, list)
		if !errors.Is(err, unix.ERANGE) {
			break
		}
		list = make([]byte, 64<<10)
	}
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	attrs := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if overlay, ok := strings.CutPrefix(name, "trusted.overlay."); ok && overlay != "opaque" && overlay != "whiteout" {
			if overlay == "redirect" || overlay == "metacopy" {
				return nil, fmt.Errorf("%w: it has the attribute %s", ErrUnsuitable, name)
			}
			continue
		}
		// Of a rootless Docker; containerd mounts without userxattr and would not see it.
		if strings.HasPrefix(name, "user.overlay.") {
			return nil, fmt.Errorf("%w: it has the attribute %s", ErrUnsuitable, name)
		}
		size, err := unix.Lgetxattr(path, name, nil)
		if err != nil {
			return nil, err
		}
		value := make([]byte, size)
		if size > 0 {
			if size, err = unix.Lgetxattr(path, name, value); err != nil {
				return nil, err
			}
		}
		attrs[name] = value[:size]
	}
	return attrs, nil
}
