package agenttest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Describe tells of each file below dir all that a container could see: type, mode, owner, device, content, time of change,
// extended attributes, and which files are one under several names. It walks relative to open directories, since paths may be longer than the kernel takes.
func Describe(t *testing.T, dir string) map[string]string {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	files := map[string]string{}
	first := map[uint64]string{} // by inode
	var walk func(at *os.Root, path string)
	walk = func(at *os.Root, path string) {
		self, err := at.Open(".")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = self.Close() }()
		files[path+"/"], _ = describeOne(t, fmt.Sprintf("/proc/self/fd/%d/.", self.Fd()))
		entries, err := self.ReadDir(-1)
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
		for _, entry := range entries {
			if !entry.IsDir() {
				text, inode := describeOne(t, fmt.Sprintf("/proc/self/fd/%d/%s", self.Fd(), entry.Name()))
				if other, ok := first[inode]; ok {
					text += " same as " + other
				} else {
					first[inode] = path + "/" + entry.Name()
				}
				files[path+"/"+entry.Name()] = text
				continue
			}
			below, err := at.OpenRoot(entry.Name())
			if err != nil {
				t.Fatal(err)
			}
			walk(below, path+"/"+entry.Name())
			_ = below.Close()
		}
	}
	walk(root, "")
	return files
}

func describeOne(t *testing.T, path string) (text string, inode uint64) {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		t.Fatal(err)
	}
	text = fmt.Sprintf("mode %o owner %d:%d device %d", stat.Mode, stat.Uid, stat.Gid, stat.Rdev)
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf(" size %d sha256 %s", len(data), sha(data))
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		text += " to " + target
	}
	text += fmt.Sprintf(" time %d.%09d", stat.Mtim.Sec, stat.Mtim.Nsec)
	list := make([]byte, 4096)
	size, err := unix.Llistxattr(path, list)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	names := strings.Split(strings.TrimSuffix(string(list[:max(size, 0)]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		size, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf(" %s=%x", name, value[:size])
	}
	return text, stat.Ino
}

// Same fails the test for each file in which two descriptions differ.
func Same(t *testing.T, got, want map[string]string) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			t.Errorf("%.200q: %s, want %s", path, got[path], want[path])
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%.200q is there and should not be", path)
		}
	}
}
