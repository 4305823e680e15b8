package host

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// disk mounts a file system of its own.
func disk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("SKIPPED: a full disk cannot be tested without the right to mount one: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func fill(t *testing.T, dir string) {
	t.Helper()
	file, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = file.Write(make([]byte, 4096))
	}
	if !NoSpace(err) {
		t.Fatal(err)
	}
	_ = file.Close()
}

// TestSpare: on a full disk nothing can be written, the file that was to be replaced stays whole, and each part that is released makes
// room again.
func TestSpare(t *testing.T) {
	dir := disk(t, "64m")
	s := NewSpare(dir, filepath.Join(dir, "."), filepath.Join(dir, "not-there"))
	if len(s.dirs) != 1 {
		t.Fatalf("held back in %v", s.dirs)
	}
	for range 2 {
		if err := s.Take(); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "config")
	write(t, path, "old", 0o640)
	fill(t, dir)
	content := bytes.Repeat([]byte("x"), sparePart/2)
	if err := Replace(path, content, 0o600); !NoSpace(err) {
		t.Fatalf("the disk is not full: %v", err)
	}
	if now, err := os.ReadFile(path); err != nil || string(now) != "old" {
		t.Fatalf("the file is %q (%v)", now, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".config*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for part := range spareParts {
		if !s.Release() {
			t.Fatalf("part %d is not there", part)
		}
		if err := Replace(path, content, 0o600); err != nil {
			t.Fatalf("after part %d: %v", part, err)
		}
	}
	if s.Release() {
		t.Error("released what was not there")
	}
	if err := s.Drop(); err != nil || !Absent(filepath.Join(dir, spareName)) {
		t.Errorf("left behind: %v", err)
	}
}

func TestSpareNeedsRoom(t *testing.T) {
	dir := disk(t, "8m")
	if err := NewSpare(dir).Take(); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "needs 40 MiB") {
		t.Errorf("%v", err)
	}
	if !Absent(filepath.Join(dir, spareName)) {
		t.Error("space is held back all the same")
	}
	if err := NewSpare(dir).Enough(); err == nil || !strings.Contains(err.Error(), "needs 40 MiB") {
		t.Errorf("%v", err)
	}
}

// TestUndoOnFullDisk: a file that cannot be put back is left as it is, whole, and comes back once there is room.
func TestUndoOnFullDisk(t *testing.T) {
	dir := disk(t, "64m")
	f := Files{Dir: filepath.Join(t.TempDir(), "run")}
	path := filepath.Join(dir, "config")
	old, new := bytes.Repeat([]byte("old\n"), 5000), bytes.Repeat([]byte("new\n"), 5000)
	write(t, path, string(old), 0o600)
	c := plan(t, f, path, old, new)
	s := NewSpare(dir)
	if err := s.Take(); err != nil {
		t.Fatal(err)
	}
	fill(t, dir)
	if err := f.Apply(c); !NoSpace(err) {
		t.Fatal(err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, old) {
		t.Fatal("a failed change has spoiled the file")
	}
	s.Release()
	if err := f.Apply(c); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	fill(t, dir)
	if _, err := f.Undo(c); !NoSpace(err) {
		t.Fatal(err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, new) {
		t.Fatal("a failed undo has spoiled the file")
	}
	s.Release()
	if _, err := f.Undo(c); err != nil {
		t.Fatal(err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, old) {
		t.Error("not as before")
	}
}
