package agenttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is a file system of its own, of which it can be seen what would be left of it had the power failed.
type Disk struct {
	// Dir is where it is mounted until the test ends.
	Dir     string
	image   string
	options string
	t       *testing.T
}

// NewDisk makes an ext4 file system on a loop device, with or without a journal, and skips the test where that cannot be done. It writes
// nothing out by itself but what was dirty for half a minute.
func NewDisk(t *testing.T, journal bool) *Disk {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", "disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &Disk{Dir: filepath.Join(dir, "d"), image: filepath.Join(dir, "image"), options: "loop,noauto_da_alloc,commit=300", t: t}
	args := []string{"-q", "-F", d.image}
	if !journal {
		args, d.options = append([]string{"-O", "^has_journal"}, args...), "loop"
	}
	if out, err := exec.Command("truncate", "--size=512M", d.image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("mkfs.ext4", args...).CombinedOutput(); err != nil {
		t.Skipf("no ext4 to test with: %v: %s", err, out)
	}
	d.mount(d.image, d.Dir)
	return d
}

func (d *Disk) mount(image, dir string) {
	d.t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		d.t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "ext4", "-o", d.options, image, dir).CombinedOutput(); err != nil {
		d.t.Skipf("no loop device to test with: %v: %s", err, out)
	}
	d.t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			d.t.Errorf("unmount %s: %v", dir, err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
}

// AfterPowerFailed mounts what is on the disk at this moment, and returns where.
func (d *Disk) AfterPowerFailed() string {
	d.t.Helper()
	left, err := os.MkdirTemp(filepath.Dir(d.image), "left-")
	if err != nil {
		d.t.Fatal(err)
	}
	image, dir := filepath.Join(left, "image"), filepath.Join(left, "d")
	if out, err := exec.Command("cp", "--sparse=always", d.image, image).CombinedOutput(); err != nil {
		d.t.Fatalf("%v: %s", err, out)
	}
	d.mount(image, dir)
	return dir
}

// InMemory has the daemons that the test starts from now on keep their data in memory: what they sync then takes no time.
func InMemory(t *testing.T) {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", "memory-")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
		_ = os.Remove(dir)
	})
	t.Setenv("TMPDIR", dir)
}
