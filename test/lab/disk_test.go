package lab

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestPowerLoss cuts the power of a disk: what was synced survives, nothing else does, and neither mounts nor loop devices are left.
func TestPowerLoss(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: mounting needs root")
	}
	if err := exec.CommandContext(t.Context(), "losetup", "--find").Run(); err != nil {
		t.Skipf("SKIPPED: no loop devices: %v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(fileSystems)) {
		t.Run(name, func(t *testing.T) {
			mkfs := fileSystems[name].mkfs[0]
			if _, err := exec.LookPath(mkfs); err != nil {
				t.Skipf("SKIPPED: no %s: run hack/deps", mkfs)
			}
			testPowerLoss(t, name)
		})
	}
}

func testPowerLoss(t *testing.T, fileSystem string) {
	n := nodeNumbered(1, t.TempDir())
	n.FileSystem, n.Usr = fileSystem, t.TempDir()
	t.Cleanup(func() {
		if err := n.remove(); err != nil {
			t.Error(err)
		}
	})
	if err := os.MkdirAll(n.Disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := n.losePower(); err == nil {
		t.Fatal("cut the power of a folder of the machine")
	}
	if err := n.makeDisk(t.Context()); err != nil {
		t.Fatal(err)
	}
	usr := filepath.Join(n.Root, "usr")
	if err := errors.Join(os.MkdirAll(usr, 0o755), os.MkdirAll(filepath.Join(n.Disk, "usr/upper"), 0o755), os.MkdirAll(filepath.Join(n.Disk, "usr/work"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := n.mountUsr(); err != nil {
		t.Fatal(err)
	}
	l := newLab(&cluster{state: &state{Nodes: []*node{n}}})
	write := func(name string) {
		for _, dir := range []string{n.Root, usr} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("content"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("synced")
	if err := l.Sync(n.Name); err != nil {
		t.Fatal(err)
	}
	write("unsynced")

	if err := n.losePower(); err != nil {
		t.Fatal(err)
	}
	if err := n.unmountDisk(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.mountDisk(), n.mountUsr()); err != nil {
		t.Fatal(err)
	}

	for _, dir := range []string{n.Root, usr} {
		if data, err := os.ReadFile(filepath.Join(dir, "synced")); err != nil || string(data) != "content" {
			t.Errorf("%s: what was synced is %q, %v", dir, data, err)
		}
		if data, _ := os.ReadFile(filepath.Join(dir, "unsynced")); len(data) > 0 {
			t.Errorf("%s: what was not synced is still there", dir)
		}
	}
	image := n.image()
	devices, err := loopsOf(image)
	if err != nil || len(devices) != 1 {
		t.Errorf("attached to %q, %v, want one device", devices, err)
	}
	kept, err := os.Open(image) // its inode is not used by another file while it is open
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	if err := n.remove(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(filepath.Dir(n.Disk)); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if devices, _ := loopsOf(fmt.Sprintf("/proc/self/fd/%d", kept.Fd())); len(devices) > 0 {
		t.Errorf("still attached to %q", devices)
	}
}
