package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A node's disk is a file system of its own in a sparse file, so that a power cut loses what was not synced, on this node alone. It holds
// the node's root, and what was written over the /usr that nodes share.

// fileSystemVariable chooses the file system where Options does not.
const fileSystemVariable = "KUBECTL_RUNTIME_LAB_FS"

// diskSize is what a node sees. The machine's disk gives only what was written.
const diskSize = 24 << 30

// fileSystem is how a disk is formatted and mounted.
type fileSystem struct {
	mkfs    []string
	options string
}

// fileSystems lose as much as they may. ext4 would otherwise commit every 5 seconds and write the content of a file that replaces another.
// Blocks that are free again go back to the machine.
var fileSystems = map[string]fileSystem{
	"ext4": {[]string{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"}, "commit=300,noauto_da_alloc,noinit_itable,discard"},
	"xfs":  {[]string{"mkfs.xfs", "-q", "-f", "-K"}, "discard"},
}

// defaultFileSystem is $KUBECTL_RUNTIME_LAB_FS, or ext4.
func defaultFileSystem() string {
	if name := os.Getenv(fileSystemVariable); name != "" {
		return name
	}
	return "ext4"
}

func (n *node) image() string { return n.Disk + ".img" }

// makeDisk makes the node's disk again and mounts it.
func (n *node) makeDisk(ctx context.Context) error {
	kind, ok := fileSystems[n.FileSystem]
	if !ok {
		return fmt.Errorf("format a disk: unknown file system %q", n.FileSystem)
	}
	if err := os.MkdirAll(n.Disk, 0o755); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	f, err := os.Create(n.image())
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	if _, err := output(ctx, kind.mkfs[0], append(slices.Clone(kind.mkfs[1:]), n.image())...); err != nil {
		return fmt.Errorf("format disk: %w", err)
	}
	return n.mountDisk()
}

func (n *node) mountDisk() error {
	loop, err := attachLoop(n.image())
	if err != nil {
		return err
	}
	defer loop.Close() // the device is released when the file system is unmounted
	if err := syscall.Mount(loop.Name(), n.Disk, n.FileSystem, 0, fileSystems[n.FileSystem].options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", loop.Name(), n.Disk, err)
	}
	return nil
}

// mountUsr lays what the node writes to /usr over the shared original.
func (n *node) mountUsr() error {
	options := "lowerdir=" + n.Usr + ",upperdir=" + filepath.Join(n.Disk, "usr/upper") + ",workdir=" + filepath.Join(n.Disk, "usr/work")
	usr := filepath.Join(n.Root, "usr")
	if err := syscall.Mount("overlay", usr, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount %s: %w", usr, err)
	}
	return nil
}

// attachLoop makes a block device of a file. The kernel releases it with its last use.
func attachLoop(image string) (*os.File, error) {
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach disk: %w", err)
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach disk: this machine has no loop devices, on which the disks of lab nodes are: %w", err)
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], image)
	for {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("attach disk: %w", err)
		}
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), &config); err == nil {
			return loop, nil
		}
		_ = loop.Close()
		if !errors.Is(err, unix.EBUSY) { // another process was faster
			return nil, fmt.Errorf("attach disk to %s: %w", loop.Name(), err)
		}
	}
}

// loopsOf lists the loop devices that a file is attached to. Their paths are not compared: each mount namespace may have its own.
func loopsOf(image string) ([]string, error) {
	var file unix.Stat_t
	if err := unix.Stat(image, &file); err != nil {
		return nil, fmt.Errorf("find loop devices of %s: %w", image, err)
	}
	attached, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var devices []string
	for _, path := range attached {
		device := filepath.Join("/dev", strings.Split(path, "/")[3])
		loop, err := os.Open(device)
		if err != nil {
			continue // gone meanwhile
		}
		info, err := unix.IoctlLoopGetStatus64(int(loop.Fd()))
		_ = loop.Close()
		if err == nil && info.Device == file.Dev && info.Inode == file.Ino {
			devices = append(devices, device)
		}
	}
	return devices, nil
}

// unmountDisk unmounts the disk and all on it, and waits until the kernel has let go of it: processes and mount namespaces that were
// ended may take a moment.
func (n *node) unmountDisk() error {
	return poll(context.Background(), 30*time.Second, func() error {
		if err := unmountAll(n.Disk); err != nil {
			return err
		}
		if !exists(n.image()) {
			return nil
		}
		devices, err := loopsOf(n.image())
		if err == nil && len(devices) > 0 {
			err = fmt.Errorf("unmount %s: %s is still in use", n.Disk, strings.Join(devices, ", "))
		}
		return err
	})
}

// unmountAll unmounts a folder and everything below it, the last mount first.
func unmountAll(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var list []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && (f[1] == dir || strings.HasPrefix(f[1], dir+"/")) {
			list = append(list, f[1])
		}
	}
	for _, path := range slices.Backward(list) {
		if err := syscall.Unmount(path, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return nil
}

// losePower has nothing more reach the disk, neither what is in memory nor the journal's open transaction.
func (n *node) losePower() error {
	f, err := os.Open(n.Disk)
	if err != nil {
		return fmt.Errorf("cut the power of a disk: %w", err)
	}
	defer f.Close()
	const loopMajor = 7
	// Nothing but a node's disk: the machine's file system would be gone until it boots.
	var disk, machine unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &disk), unix.Stat(filepath.Dir(n.Disk), &machine)); err != nil {
		return fmt.Errorf("cut the power of %s: %w", n.Disk, err)
	}
	if unix.Major(disk.Dev) != loopMajor || disk.Dev == machine.Dev {
		return fmt.Errorf("cut the power of %s: no disk is mounted there", n.Disk)
	}
	const shutdown, noLogFlush = 0x8004587d, 2 // FS_IOC_SHUTDOWN: _IOR('X', 125, __u32), of ext4 and xfs
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		return fmt.Errorf("cut the power of %s: %w", n.Disk, err)
	}
	return nil
}

// Sync writes everything on a node's disk, as time would: what was written before is not lost by a power cut.
func (l machines) Sync(name string) error {
	n, err := l.node(name)
	if err != nil {
		return err
	}
	f, err := os.Open(n.Disk)
	if err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	return nil
}
