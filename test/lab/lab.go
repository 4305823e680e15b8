package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options say what Up makes. The zero value of every field but Profile is a good one.
type Options struct {
	Profile      string    // Dockershim, CRIDockerd or Oldest
	Name         string    // shown by status; default: the profile's
	Nodes        int       // default 2
	CgroupDriver string    // of Docker and the kubelet: systemd (default) or cgroupfs
	FileSystem   string    // of the nodes' disks: ext4 or xfs; default $KUBECTL_RUNTIME_LAB_FS, or ext4
	Overlay      string    // folder whose files are copied over every node's root before it boots
	RegistryAuth bool      // a second registry, with TLS and basic authentication
	Keep         bool      // leave a lab that failed to come up, to look at it
	Log          io.Writer // progress; default standard error
	// Overlays are folders by node name ("node-1"), copied over that node's root after Overlay.
	Overlays map[string]string
	Packages []string // of Debian, which every node has beside the profile's
	AgentCNI bool     // CNI ADD and DEL fail unless an agent, a DaemonSet's pod, runs on the node
}

// Lab is a running cluster.
type Lab struct {
	*cluster
	machines
	controlPlane
}

// cluster is what the machines and the control plane of a lab share: where it keeps its files, and what runs.
type cluster struct {
	cache    cache
	profile  profile
	overlay  string
	overlays map[string]string
	log      io.Writer
	pki      *pki

	mu    sync.Mutex
	state *state
}

// machines makes, boots and enters the nodes.
type machines struct{ *cluster }

// controlPlane has the programs that run on this machine itself: etcd, those of Kubernetes, the registries.
type controlPlane struct{ *cluster }

func newLab(c *cluster) *Lab { return &Lab{c, machines{c}, controlPlane{c}} }

// Up starts a cluster and waits until its nodes, kube-proxy and CoreDNS are ready. If that fails, or ctx ends, everything is
// removed again, and the error carries the end of the logs that tell why.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if o.Log == nil {
		o.Log = os.Stderr
	}
	o.Nodes = max(o.Nodes, 0)
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.CgroupDriver == "" {
		o.CgroupDriver = "systemd"
	}
	if o.FileSystem == "" {
		o.FileSystem = defaultFileSystem()
	}
	if o.Name == "" {
		o.Name = o.Profile
	}
	p, err := profileNamed(o.Profile)
	if err != nil {
		return nil, err
	}
	p.packages = append(slices.Clone(p.packages), o.Packages...)
	if err := o.validate(); err != nil {
		return nil, err
	}
	c, err := newCache(o.Log)
	if err != nil {
		return nil, err
	}
	if err := removeDead(o.Log); err != nil {
		return nil, err
	}
	held, err := lock()
	if err != nil {
		return nil, err
	}
	defer held.Close()
	if s, err := load(); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("lab %s is up since %s: only one runs at a time: run `lab down` first", s.Name, s.Started.Format(time.DateTime))
	}
	rootfs, images, err := prepare(ctx, c, p)
	if err != nil {
		return nil, err
	}
	l := newLab(&cluster{cache: c, profile: p, overlay: o.Overlay, overlays: o.Overlays, log: o.Log})
	l.state = &state{
		Name: o.Name, Repo: c.repo, CacheDir: c.dir, Profile: p.name, Driver: o.CgroupDriver, Started: time.Now(),
		Sysctls: readSysctls(sharedSysctls), RegistryAuth: o.RegistryAuth, AgentCNI: o.AgentCNI,
	}
	for i := range o.Nodes {
		n := nodeNumbered(i+1, filepath.Join(c.dir, "nodes"))
		n.FileSystem, n.Usr = o.FileSystem, filepath.Join(rootfs, "usr")
		l.state.Nodes = append(l.state.Nodes, n)
	}
	if err := l.up(ctx, rootfs, images); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("interrupted: %w", context.Cause(ctx))
		}
		if o.Keep {
			return nil, fmt.Errorf("%w\nkept as it is: look at %s, and run `lab down` in the end", err, stateDir)
		}
		return nil, errors.Join(err, l.down())
	}
	return l, nil
}

// removeDead removes what is left of a lab none of whose processes runs any more: one whose machine, or everything on it, was ended.
func removeDead(log io.Writer) error {
	l, err := Open(log)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if l.state.alive() {
		return nil
	}
	l.say("removing what is left of lab %s of %s: none of its processes runs any more", l.state.Name, l.state.Started.Format(time.DateTime))
	return l.Down()
}

func (o Options) validate() error {
	if os.Geteuid() != 0 {
		return errors.New("a lab needs root")
	}
	if o.CgroupDriver != "systemd" && o.CgroupDriver != "cgroupfs" {
		return fmt.Errorf("cgroup driver %q: not one of systemd, cgroupfs", o.CgroupDriver)
	}
	if _, ok := fileSystems[o.FileSystem]; !ok {
		return fmt.Errorf("file system %q: not one of %s", o.FileSystem, strings.Join(slices.Sorted(maps.Keys(fileSystems)), ", "))
	}
	if o.Nodes > 100 {
		return fmt.Errorf("%d nodes: more than 100", o.Nodes)
	}
	if o.Overlay != "" {
		if _, err := os.Stat(o.Overlay); err != nil {
			return fmt.Errorf("overlay: %w", err)
		}
	}
	for name, dir := range o.Overlays {
		if i, err := strconv.Atoi(strings.TrimPrefix(name, "node-")); err != nil || i < 1 || i > o.Nodes || name != nodeNumbered(i, "").Name {
			return fmt.Errorf("overlay of %s: there is no such node", name)
		}
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("overlay of %s: %w", name, err)
		}
	}
	return nil
}

// Prepare fills the cache with all that Up needs for those profiles, which takes many minutes the first time.
func Prepare(ctx context.Context, log io.Writer, profiles ...string) error {
	c, err := newCache(log)
	if err != nil {
		return err
	}
	held, err := lock()
	if err != nil {
		return err
	}
	defer held.Close()
	for _, name := range profiles {
		p, err := profileNamed(name)
		if err != nil {
			return err
		}
		if _, _, err := prepare(ctx, c, p); err != nil {
			return err
		}
	}
	return nil
}

func prepare(ctx context.Context, c cache, p profile) (rootfs string, images []image, err error) {
	if err := c.ensureDeps(ctx); err != nil {
		return "", nil, err
	}
	if err := c.build(ctx, p.builds()...); err != nil {
		return "", nil, err
	}
	if rootfs, err = c.rootfs(ctx, p); err != nil {
		return "", nil, err
	}
	images, err = c.images(ctx, p, rootfs)
	return rootfs, images, err
}

func (l *Lab) up(ctx context.Context, rootfs string, images []image) error {
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return fmt.Errorf("make state folder: %w", err)
	}
	if err := l.state.save(); err != nil {
		return err
	}
	if err := networkUp(ctx, l.state); err != nil {
		return err
	}
	// The nodes' systemds, kubelets and containers share what one user of the machine may have; kernels have 128.
	if err := raiseSysctl("fs.inotify.max_user_instances", 256*len(l.state.Nodes)); err != nil {
		return err
	}
	for name, build := range map[string]string{"kubectl": kubectlBuild, "crictl": "cri-tools"} {
		if err := l.link(ctx, build, name); err != nil {
			return err
		}
	}
	l.say("starting the control plane and %d nodes", len(l.state.Nodes))
	if err := l.makeKeys(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, len(l.state.Nodes)+1)
	go func() { errs <- errors.Join(l.startControlPlane(ctx), l.startRegistries(ctx)) }()
	for _, n := range l.state.Nodes {
		go func() { errs <- l.bringUp(ctx, n, rootfs, images) }()
	}
	var failed error
	for range cap(errs) {
		if err := <-errs; err != nil && failed == nil {
			failed = err
			cancel()
		}
	}
	if failed != nil {
		return failed
	}
	if err := l.addons(ctx); err != nil {
		return err
	}
	for _, n := range l.state.Nodes {
		if err := l.Sync(n.Name); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Ready = true
	return l.state.save()
}

// bringUp makes a node, boots it and gives it its images.
func (l machines) bringUp(ctx context.Context, n *node, rootfs string, images []image) error {
	started := time.Now()
	if err := l.create(ctx, n, rootfs); err != nil {
		return err
	}
	created := time.Since(started)
	if err := l.Boot(ctx, n.Name); err != nil {
		return err
	}
	booted := time.Since(started)
	if err := poll(ctx, patience, func() error { return l.active(ctx, n.Name, "docker.service") }); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", n.Name, err), l.why(n))
	}
	for _, img := range images {
		if err := l.loadImage(ctx, n.Name, img); err != nil {
			return err
		}
	}
	l.say("%s: created after %.1f s, booted after %.1f s, images loaded after %.1f s", n.Name, created.Seconds(), booted.Seconds(), time.Since(started).Seconds())
	return nil
}

// Down removes the cluster and everything that Up made. It may be called again after it failed, and does nothing after it
// worked. A lab that someone else has started in the meantime is left alone.
func (l *Lab) Down() error {
	held, err := lock()
	if err != nil {
		return err
	}
	defer held.Close()
	now, err := load()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !now.Started.Equal(l.state.Started) {
		return fmt.Errorf("remove lab %s: another one, %s, is up since %s", l.state.Name, now.Name, now.Started.Format(time.DateTime))
	}
	l.mu.Lock()
	l.state = now // nodes may have been booted by another process
	l.mu.Unlock()
	return l.down()
}

func (l *Lab) down() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx := context.Background() // nothing must keep it from cleaning up
	var errs []error
	for _, n := range l.state.Nodes {
		if n.Nspawn.PID != 0 && !n.Init.alive() && n.Nspawn.alive() {
			if pid, err := initOf(n.Nspawn.PID); err == nil {
				n.Init = processOf("init "+n.Name, pid)
			}
		}
		n.Init.kill(syscall.SIGKILL)
		n.Nspawn.kill(syscall.SIGKILL)
	}
	for _, p := range l.state.Processes {
		p.kill(syscall.SIGKILL)
	}
	for _, n := range l.state.Nodes {
		errs = append(errs, removeCgroups(n.Cgroups, 30*time.Second))
	}
	for _, p := range l.state.Processes {
		errs = append(errs, poll(ctx, 10*time.Second, func() error {
			if p.alive() {
				return fmt.Errorf("end %s: process %d lives on", p.Name, p.PID)
			}
			return nil
		}))
	}
	errs = append(errs, networkDown(ctx, l.state), restoreSysctls(l.state.Sysctls))
	for _, n := range l.state.Nodes {
		errs = append(errs, n.remove())
	}
	for _, dir := range []string{"propagate", "unix-export", "locks", ""} {
		_ = os.Remove(filepath.Join("/run/systemd/nspawn", dir)) // unless others use it
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove lab %s: %w", l.state.Name, err)
	}
	if err := errors.Join(os.RemoveAll(stateDir), os.RemoveAll(stateDir+".lock")); err != nil {
		return fmt.Errorf("remove lab %s: %w", l.state.Name, err)
	}
	return nil
}

// Open returns the lab that is up, or was left behind by a machine or an `up` that was killed; fs.ErrNotExist if none is.
func Open(log io.Writer) (*Lab, error) {
	s, err := load()
	if err != nil {
		return nil, err
	}
	p, err := profileNamed(s.Profile)
	if err != nil {
		return nil, err
	}
	return newLab(&cluster{cache: cache{dir: s.CacheDir, repo: s.Repo, log: log, paths: &sync.Map{}}, profile: p, log: log, state: s}), nil
}

// Kubectl runs kubectl as admin and returns what it printed.
func (l *Lab) Kubectl(ctx context.Context, args ...string) (string, error) {
	return output(ctx, filepath.Join(l.BinDir(), "kubectl"), append([]string{"--kubeconfig", l.Kubeconfig()}, args...)...)
}

// Kubeconfig is the path of the admin's kubeconfig.
func (l *cluster) Kubeconfig() string { return filepath.Join(stateDir, "admin.conf") }

// BinDir is the folder with kubectl and crictl.
func (l *cluster) BinDir() string { return filepath.Join(stateDir, "bin") }

// Name is Options.Name.
func (l *cluster) Name() string { return l.state.Name }

// AgentCNI is Options.AgentCNI.
func (l *cluster) AgentCNI() bool { return l.state.AgentCNI }

// Nodes names the nodes in order.
func (l *cluster) Nodes() []string {
	var names []string
	for _, n := range l.state.Nodes {
		names = append(names, n.Name)
	}
	return names
}

// NodeIP is a node's address, empty if there is no such node.
func (l *cluster) NodeIP(name string) string {
	n, err := l.node(name)
	if err != nil {
		return ""
	}
	return n.IP
}

// Running tells whether a node is powered on.
func (l *cluster) Running(name string) bool {
	n, err := l.node(name)
	return err == nil && n.Init.alive()
}

// Summary says in one line what this lab is.
func (l *cluster) Summary() string {
	ready := "not ready"
	if l.state.Ready {
		ready = "ready"
	}
	return fmt.Sprintf("%s: profile %s, cgroup driver %s, disks %s, %s, since %s", l.state.Name, l.state.Profile, l.state.Driver,
		l.state.Nodes[0].FileSystem, ready, l.state.Started.Format(time.DateTime))
}

func (l *cluster) node(name string) (*node, error) {
	for _, n := range l.state.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("node %q: not one of %s", name, strings.Join(l.Nodes(), ", "))
}

func (l *cluster) say(format string, args ...any) {
	_, _ = fmt.Fprintf(l.log, "lab: "+format+"\n", args...)
}
