package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// node is one machine of the lab.
type node struct {
	Name    string   `json:"name"`
	IP      string   `json:"ip"`
	PodCIDR string   `json:"podCIDR"`
	Root    string   `json:"root"`
	Disk    string   `json:"disk"` // where the node's file system is mounted; the root is a folder of it
	Usr     string   `json:"usr"`  // the original of /usr, which nodes share
	Cgroups []string `json:"cgroups"`
	Binds   []string `json:"binds"`  // binaries that are mounted, as systemd-nspawn's --bind-ro takes them
	Nspawn  process  `json:"nspawn"` // the systemd-nspawn outside
	Init    process  `json:"init"`   // the systemd inside
	// FileSystem is that of the disk: ext4 or xfs.
	FileSystem string `json:"fileSystem"`
}

// nodeNumbered lays out node-1, node-2 and so on.
func nodeNumbered(i int, nodesDir string) *node {
	name := "node-" + strconv.Itoa(i)
	disk := filepath.Join(nodesDir, name)
	return &node{
		Name: name, IP: "10.88.0." + strconv.Itoa(10+i), PodCIDR: fmt.Sprintf("10.244.%d.0/24", i),
		Disk: disk, Root: filepath.Join(disk, "root"),
	}
}

// create makes the node's root from the profile's root file system.
func (l machines) create(ctx context.Context, n *node, rootfs string) error {
	if err := n.copyRoot(ctx, rootfs); err != nil {
		return fmt.Errorf("create %s: %w", n.Name, err)
	}
	var err error
	if n.Binds, err = l.binds(ctx); err != nil {
		return fmt.Errorf("create %s: %w", n.Name, err)
	}
	if l.state.AgentCNI {
		if err := l.cache.goBuild(ctx, "cni-needs-agent", filepath.Join(n.Root, "usr/lib/cni/cni-needs-agent")); err != nil {
			return fmt.Errorf("create %s: %w", n.Name, err)
		}
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	in := func(path string) string { return filepath.Join(n.Root, path) }
	err = errors.Join(
		l.nodeFiles(n), l.nodeKeys(n),
		writeFile(in("etc/machine-id"), []byte(hex.EncodeToString(id)+"\n"), 0o444),
		os.RemoveAll(in("etc/resolv.conf")), writeFile(in("etc/resolv.conf"), []byte("# no way out\n"), 0o644),
		os.MkdirAll(in("etc/kubernetes/manifests"), 0o700), os.MkdirAll(in("var/log/journal"), 0o755),
		os.MkdirAll(in("opt/cni"), 0o755), os.Symlink("/usr/lib/cni", in("opt/cni/bin")),
		os.RemoveAll(in("etc/apt/sources.list")), os.RemoveAll(in("etc/apt/sources.list.d")), os.MkdirAll(in("etc/apt/sources.list.d"), 0o755),
	)
	if err != nil {
		return fmt.Errorf("create %s: %w", n.Name, err)
	}
	units := []string{"lab-sysinit.service", "lab-network.service", "docker.service", "docker.socket", "containerd.service", "kubelet.service"}
	if l.profile.endpoint != "" {
		units = append(units, "cri-docker.service", "cri-docker.socket")
	}
	if _, err := output(ctx, "systemctl", append([]string{"--root=" + n.Root, "--quiet", "enable"}, units...)...); err != nil {
		return fmt.Errorf("create %s: %w", n.Name, err)
	}
	unused := []string{
		"systemd-udevd.service", "systemd-logind.service", "getty.target", "console-getty.service", "apt-daily.timer",
		"apt-daily-upgrade.timer", "systemd-networkd.service", "systemd-networkd.socket", "e2scrub_all.timer", "fstrim.timer", "dpkg-db-backup.timer",
	}
	if _, err := output(ctx, "systemctl", append([]string{"--root=" + n.Root, "--quiet", "mask"}, unused...)...); err != nil {
		return fmt.Errorf("create %s: %w", n.Name, err)
	}
	for _, overlay := range []string{l.overlay, l.overlays[n.Name]} {
		if overlay == "" {
			continue
		}
		// Not the folder itself: a root that only its owner may enter would do the node no good.
		entries, err := filepath.Glob(filepath.Join(overlay, "*"))
		if err != nil || len(entries) == 0 {
			continue
		}
		if _, err := output(ctx, "cp", append(append([]string{"-a", "--no-preserve=ownership"}, entries...), n.Root)...); err != nil {
			return fmt.Errorf("create %s: copy the overlay: %w", n.Name, err)
		}
	}
	return nil
}

// copyRoot copies a root file system to a new disk, all but /usr: that is an overlay mount over the original, which saves 400 MB for each
// node and start. What the node writes to it is on its own disk.
func (n *node) copyRoot(ctx context.Context, rootfs string) error {
	if err := n.remove(); err != nil { // what a lab that was lost left behind
		return err
	}
	if err := n.makeDisk(ctx); err != nil {
		return err
	}
	for _, dir := range []string{filepath.Join(n.Root, "usr"), filepath.Join(n.Disk, "usr/upper"), filepath.Join(n.Disk, "usr/work")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(rootfs)
	if err != nil {
		return err
	}
	args := []string{"-a"}
	for _, entry := range entries {
		if entry.Name() != "usr" {
			args = append(args, filepath.Join(rootfs, entry.Name()))
		}
	}
	if _, err := output(ctx, "cp", append(args, n.Root)...); err != nil {
		return err
	}
	return n.mountUsr()
}

// removeAll is os.RemoveAll while the last writers may still be ending.
func removeAll(path string) error {
	return poll(context.Background(), 10*time.Second, func() error { return os.RemoveAll(path) })
}

// remove removes the node's disk and what systemd-nspawn leaves behind.
func (n *node) remove() error {
	if n.Disk == "" { // a lab of an earlier commit, whose roots are folders of the machine
		n.Disk = n.Root
	}
	err := n.forget()
	_ = n.losePower() // if there is a disk, to write what is in memory would be of no use
	return errors.Join(err, n.unmountDisk(), removeAll(n.Disk), removeAll(n.image()), removeAll(n.Disk+".usr"))
}

// forget removes what systemd-nspawn leaves behind of a machine that it did not see end, but for what is on the node's disk.
func (n *node) forget() error {
	left := []string{
		filepath.Join("/run/systemd/nspawn/propagate", n.Name), filepath.Join("/run/systemd/nspawn/unix-export", n.Name),
	}
	var root syscall.Stat_t
	if err := syscall.Stat(n.Root, &root); err == nil {
		left = append(left, fmt.Sprintf("/run/systemd/nspawn/locks/inode-%d:%d", root.Dev, root.Ino))
	}
	var errs []error
	for _, path := range left {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}

// launcher moves itself into the node's cgroups, which so become the roots of the node's cgroup namespace, before it becomes
// systemd-nspawn. It does so in a mount namespace without the other nodes' disks: systemd-nspawn keeps what it finds mounted, below the
// node's root where nobody sees it, and a disk that is mounted anywhere cannot be taken away.
const launcher = `set -e
while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done
shift
exec unshare --mount /bin/sh -c '
	cut -d " " -f 2 /proc/self/mounts | grep "^${0%/*}/" | grep -v -e "^$0\$" -e "^$0/" | sort -r | xargs -r umount && exec "$@"
' "$@"`

// Boot starts a node that is powered off, and waits until systemd there starts services; which ones is up to the node.
func (l machines) Boot(ctx context.Context, name string) error {
	n, err := l.node(name)
	if err != nil {
		return err
	}
	if n.Nspawn.alive() {
		return fmt.Errorf("boot %s: it runs", name)
	}
	// The kernel takes a moment to remove the interfaces of a network namespace that a power cut has ended.
	_, _ = output(ctx, "ip", "link", "del", "vb-"+name) // that there is none is as good
	dirs, err := nodeCgroups(name)
	if err != nil {
		return fmt.Errorf("boot %s: %w", name, err)
	}
	l.mu.Lock()
	n.Cgroups = dirs
	err = l.state.save()
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if err := makeCgroups(dirs); err != nil {
		return fmt.Errorf("boot %s: %w", name, err)
	}
	args := append(append([]string{"-c", launcher, "lab"}, dirs...), "--", n.Disk)
	if err := l.spawn(n, append(args, n.nspawnArgs()...)); err != nil {
		return fmt.Errorf("boot %s: %w", name, err)
	}
	if err := l.waitBooted(ctx, n); err != nil {
		return fmt.Errorf("boot %s: %w\n%s", name, err, l.tail(name, 30))
	}
	return routePods(ctx, n)
}

// spawn starts systemd-nspawn and remembers it.
func (l machines) spawn(n *node, args []string) error {
	log, err := os.OpenFile(l.logFile(n.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/bin/sh", args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_API_VFS_WRITABLE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }()
	l.mu.Lock()
	defer l.mu.Unlock()
	n.Nspawn, n.Init = processOf("nspawn "+n.Name, cmd.Process.Pid), process{}
	return l.state.save()
}

func (n *node) nspawnArgs() []string {
	args := []string{
		"systemd-nspawn", "--quiet", "-D", n.Root, "-M", n.Name, "-b", "--keep-unit", "--register=no", "--network-bridge=" + bridge,
		"--capability=all", "--system-call-filter=@known", "--bind=/dev/kmsg", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
	}
	for _, bind := range n.Binds {
		args = append(args, "--bind-ro="+bind)
	}
	if len(n.Cgroups) > 1 { // cgroup v1, which systemd 256 and later refuse if not told
		args = append(args, "systemd.unified_cgroup_hierarchy=0", "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1")
	}
	return args
}

// binds lists the binaries that a node of this profile has from builds, and where.
func (l machines) binds(ctx context.Context) ([]string, error) {
	type bind struct{ build, name, path string }
	list := []bind{{l.profile.kubelet, "kubelet", "/usr/bin/kubelet"}, {"cri-tools", "crictl", "/usr/local/bin/crictl"}}
	for _, name := range l.profile.binds {
		list = append(list, bind{name, name, "/usr/bin/" + name})
	}
	var binds []string
	for _, b := range list {
		binary, err := l.cache.binary(ctx, b.build, b.name)
		if err != nil {
			return nil, err
		}
		binds = append(binds, binary+":"+b.path)
	}
	return binds, nil
}

// waitBooted waits until the systemd inside is found and has done with its own start.
func (l machines) waitBooted(ctx context.Context, n *node) error {
	return poll(ctx, patience, func() error {
		if !n.Nspawn.alive() {
			return fatalError{errors.New("systemd-nspawn ended")}
		}
		if !n.Init.alive() {
			pid, err := initOf(n.Nspawn.PID)
			if err != nil {
				return err
			}
			l.mu.Lock()
			n.Init = processOf("init "+n.Name, pid)
			err = l.state.save()
			l.mu.Unlock()
			if err != nil {
				return err
			}
		}
		return l.active(ctx, n.Name, "basic.target")
	})
}

// active is nil once a unit on a node is active.
func (l machines) active(ctx context.Context, name, unit string) error {
	if out, err := l.Exec(ctx, name, "systemctl", "is-active", unit); err != nil {
		return fmt.Errorf("wait for %s: %s", unit, strings.TrimSpace(out))
	}
	return nil
}

// initOf finds the node's PID 1: the child of systemd-nspawn that is the first process of another PID namespace.
func initOf(nspawn int) (int, error) {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return 0, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if s, err := procStat(pid); err != nil || s.parent != nspawn {
			continue
		}
		exe, _ := os.Readlink(filepath.Join("/proc", entry.Name(), "exe"))
		if ns, err := os.Readlink(filepath.Join("/proc", entry.Name(), "ns/pid")); err == nil && ns != own && strings.HasSuffix(exe, "/systemd") {
			return pid, nil
		}
	}
	return 0, errors.New("systemd has not started")
}

// Exec runs a program on a node, as root, and returns its standard output. An error carries everything that it printed.
func (l machines) Exec(ctx context.Context, name string, args ...string) (string, error) {
	cmd, err := l.Command(ctx, name, args...)
	if err != nil {
		return "", err
	}
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("run %q on %s: %w\n%s%s", strings.Join(args, " "), name, err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// Command is Exec for callers that connect input and output themselves.
func (l machines) Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	n, err := l.node(name)
	if err != nil {
		return nil, err
	}
	if !n.Init.alive() {
		return nil, fmt.Errorf("run %q on %s: it is powered off", strings.Join(args, " "), name)
	}
	in := append([]string{"-t", strconv.Itoa(n.Init.PID), "-a", "--"}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", in...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=" + os.Getenv("TERM")}
	cmd.WaitDelay = 5 * time.Second
	return cmd, nil
}

// PowerOff ends a node as a power cut does: every process of it is gone at once, nothing gets a signal to stop, and what was not synced is lost.
// Then the disk is mounted as the node's next boot finds it.
func (l machines) PowerOff(name string) error {
	n, err := l.node(name)
	if err != nil {
		return err
	}
	if err := errors.Join(n.forget(), l.cut(n), n.unmountDisk()); err != nil {
		return fmt.Errorf("power off %s: %w", name, err)
	}
	if err := n.mountDisk(); err != nil {
		return fmt.Errorf("mount the disk of %s again: %w", name, err)
	}
	return n.mountUsr()
}

// cut ends all processes of a node while they are frozen, so that nothing sees the disk fail or another end before itself.
func (l machines) cut(n *node) error {
	freezeCgroups(n.Cgroups)
	err := n.losePower()
	killCgroups(n.Cgroups)
	n.Init.kill(syscall.SIGKILL)
	n.Nspawn.kill(syscall.SIGKILL)
	return errors.Join(err, removeCgroups(n.Cgroups, 30*time.Second), poll(context.Background(), 10*time.Second, func() error {
		if n.Init.alive() || n.Nspawn.alive() {
			return fmt.Errorf("process %d lives on", n.Nspawn.PID)
		}
		return nil
	}))
}

// LoadImage brings an image to a node's Docker: a `docker save` archive as it is, or the tar of a root file system, which
// becomes the image named ref.
func (l machines) LoadImage(ctx context.Context, name, tar, ref string) error {
	return l.loadImage(ctx, name, image{tar: tar, ref: ref})
}

func (l machines) loadImage(ctx context.Context, name string, img image) error {
	args := []string{"docker", "import"}
	for _, change := range img.changes {
		args = append(args, "-c", change)
	}
	args = append(args, "-", img.ref)
	listing, err := output(ctx, "tar", "-tf", img.tar)
	if err != nil {
		return fmt.Errorf("load %s: %w", img.tar, err)
	}
	if strings.Contains("\n"+listing, "\nmanifest.json\n") {
		args = []string{"docker", "load", "--quiet"}
	} else if img.ref == "" {
		return fmt.Errorf("load %s: a root file system needs a name to become an image", img.tar)
	}
	f, err := os.Open(img.tar)
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	defer f.Close()
	cmd, err := l.Command(ctx, name, args...)
	if err != nil {
		return err
	}
	cmd.Stdin = f
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load %s on %s: %w\n%s", img.tar, name, err, out)
	}
	return nil
}
