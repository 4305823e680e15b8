package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// SmokeOptions say what Smoke runs.
type SmokeOptions struct {
	// SandboxImage and Image have to be on the runtime: nothing is pulled.
	SandboxImage string
	Image        string
	// Command runs until it is stopped and writes at least one line at its start; Exec ends with 0 when run beside it. Both are
	// full paths with arguments, since the image may have no shell.
	Command []string
	Exec    []string
	// Images are further images of which each has to make a container, which is not started: its program may do anything.
	Images []string
	// CgroupDriver is the kubelet's: systemd or cgroupfs.
	CgroupDriver string
	// CgroupParent is the sandbox's, in the driver's form; empty means one of our own.
	CgroupParent string
	// Pod is one that exists in the API: Calico, Cilium and others look up the pod of every sandbox.
	Pod Pod
	// LogDir is the directory on the host for the container's log; it is made if it is not there, and what is written is removed.
	LogDir string
	// LeaseDir is where host-local would keep the sandbox's address; empty means /var/lib/cni/networks.
	LeaseDir string
	// HostNetwork runs the sandbox on the host's network: no CNI plugin runs, not even for what an earlier smoke test left.
	HostNetwork bool
	// Look, if set, is given the processes while the container runs, where the runtime tells them.
	Look func(Processes)
	// Stage, if set, gets the name of each part before it starts.
	Stage func(string)
}

const (
	// smokeLabel marks what Smoke makes, so that the next one can remove what a crash left behind.
	smokeLabel = "kubectl-runtime.dev/smoke-test"
	// networkLabel says on which network; the values are those of smoke.network.
	networkLabel = "kubectl-runtime.dev/smoke-test-network"
	// cleanupTimeout bounds the removal after a failure, whatever became of the caller's context.
	cleanupTimeout = 60 * time.Second
	// settle bounds the wait for statistics, a log line or a lease to be as they should.
	settle = 15 * time.Second

	memoryLimit = 64 << 20 // bytes
	cpuPeriod   = 100000   // microseconds
	cpuQuota    = 50000
)

// smoke is one run.
type smoke struct {
	*Client
	SmokeOptions
	sandboxConfig *runtimeapi.PodSandboxConfig
	sandbox       string
	container     string
}

// network names the sandbox's network.
func (s *smoke) network() string {
	if s.HostNetwork {
		return "host"
	}
	return "pod"
}

// Smoke proves that the runtime runs pods: sandbox image and test image are there, a sandbox gets an address on the pod network (unless
// HostNetwork is set), a container with limits starts, answers an exec, has statistics, and logs in the CRI format; then all of it is removed, and
// host-local's lease is gone. Everything is removed after a failure, too, also if ctx has ended. The error names the call.
func (c *Client) Smoke(ctx context.Context, o SmokeOptions) (err error) {
	if o.Stage == nil {
		o.Stage = func(string) {}
	}
	if o.LeaseDir == "" {
		o.LeaseDir = "/var/lib/cni/networks"
	}
	s := &smoke{Client: c, SmokeOptions: o}
	if err := s.removeLeftovers(ctx); err != nil {
		return fmt.Errorf("remove an earlier smoke test: %w", err)
	}
	defer func() {
		cleanup, cancel := host.Outlive(ctx, cleanupTimeout)
		defer cancel()
		o.Stage("remove the sandbox")
		err = errors.Join(err, s.remove(cleanup))
	}()
	for _, step := range []struct {
		title string
		run   func(context.Context) error
		skip  bool
	}{
		{title: "look for the images", run: s.images},
		{title: "run a sandbox on the " + s.network() + " network", run: s.runSandbox},
		{title: "create a container from each image", run: s.createFromEach, skip: len(o.Images) == 0},
		{title: "start a container with limits", run: s.startContainer},
		{title: "look at its processes", run: s.processes, skip: o.Look == nil},
		{title: "run a command in it", run: s.exec},
		{title: "read its statistics", run: s.stats},
		{title: "read its log", run: s.log},
		{title: "stop it", run: s.stop},
	} {
		if step.skip {
			continue
		}
		o.Stage(step.title)
		if err := step.run(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *smoke) images(ctx context.Context) error {
	for _, ref := range []string{s.SandboxImage, s.Image} {
		found, err := s.HasImage(ctx, ref)
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("ImageStatus: the runtime does not have %s", ref)
		}
	}
	return nil
}

// cgroupParent is of the form that the driver takes: with systemd anything but a slice makes runc fail.
func (s *smoke) cgroupParent() string {
	if s.CgroupParent != "" {
		return s.CgroupParent
	}
	if s.CgroupDriver == "systemd" {
		return "/kubectl_runtime.slice"
	}
	return "/kubectl-runtime"
}

func (s *smoke) runSandbox(ctx context.Context) error {
	if err := os.MkdirAll(s.LogDir, 0o755); err != nil { //nolint:gosec // as the kubelet makes pods' log directories
		return fmt.Errorf("make log directory: %w", err)
	}
	network := runtimeapi.NamespaceMode_POD
	if s.HostNetwork {
		network = runtimeapi.NamespaceMode_NODE
	}
	s.sandboxConfig = &runtimeapi.PodSandboxConfig{
		// A runtime that has this pod for good has it under small attempts; the same name twice is refused.
		Metadata: &runtimeapi.PodSandboxMetadata{
			Name: s.Pod.Name, Namespace: s.Pod.Namespace, Uid: s.Pod.UID, Attempt: 1<<31 | uint32(time.Now().UnixMilli())&0x7fffffff, //nolint:gosec // the low bits are what is wanted
		},
		LogDirectory: s.LogDir,
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"127.0.0.1"}, Searches: []string{"cluster.local"}, Options: []string{"ndots:5"}},
		Labels:       map[string]string{smokeLabel: "true", networkLabel: s.network()},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: s.cgroupParent(),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: network, Pid: runtimeapi.NamespaceMode_CONTAINER, Ipc: runtimeapi.NamespaceMode_POD},
			},
		},
	}
	if !s.HostNetwork {
		s.sandboxConfig.Hostname = "kubectl-runtime-smoke-test"
	}
	answer, err := s.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: s.sandboxConfig})
	if err != nil {
		return call("RunPodSandbox", err)
	}
	s.sandbox = answer.GetPodSandboxId()
	state, err := s.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.sandbox})
	if err != nil {
		return call("PodSandboxStatus", err)
	}
	if state.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("PodSandboxStatus: the sandbox is %s", state.GetStatus().GetState())
	}
	// containerd tells no address for the host's network.
	if !s.HostNetwork && state.GetStatus().GetNetwork().GetIp() == "" {
		return errors.New("PodSandboxStatus: the sandbox has no IP address")
	}
	return nil
}

// logPath is relative to LogDir. Attempts keep logs of several runs apart.
func (s *smoke) logPath() string {
	return fmt.Sprintf("smoke-%d.log", s.sandboxConfig.GetMetadata().GetAttempt())
}

// createFromEach has the runtime mount each image's file system and make a container's specification of it. That needs no name in
// the image's own user database, which a pod may have no use for.
func (s *smoke) createFromEach(ctx context.Context) error {
	var tasks []func() error
	for n, ref := range s.Images {
		tasks = append(tasks, func() error {
			answer, err := s.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
				PodSandboxId: s.sandbox,
				Config: &runtimeapi.ContainerConfig{
					Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprintf("image-%d", n)},
					Image:    &runtimeapi.ImageSpec{Image: ref},
					Command:  s.Command,
					Labels:   map[string]string{smokeLabel: "true"},
					Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
						RunAsUser:        &runtimeapi.Int64Value{},
						NamespaceOptions: s.sandboxConfig.GetLinux().GetSecurityContext().GetNamespaceOptions(),
					}},
				},
				SandboxConfig: s.sandboxConfig,
			})
			if err != nil {
				return call("CreateContainer from image "+ref, err)
			}
			_, err = s.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: answer.GetContainerId()})
			return call("RemoveContainer from image "+ref, ignoreNotFound(err))
		})
	}
	// Few at a time: the node is in service.
	return inParallel(tasks, 4)
}

func (s *smoke) startContainer(ctx context.Context) error {
	answer, err := s.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: s.sandbox,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "smoke-test"},
			Image:    &runtimeapi.ImageSpec{Image: s.Image},
			Command:  s.Command,
			LogPath:  s.logPath(),
			Labels:   map[string]string{smokeLabel: "true"},
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{CpuPeriod: cpuPeriod, CpuQuota: cpuQuota, MemoryLimitInBytes: memoryLimit},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: s.sandboxConfig.GetLinux().GetSecurityContext().GetNamespaceOptions(),
				},
			},
		},
		SandboxConfig: s.sandboxConfig,
	})
	if err != nil {
		return call("CreateContainer", err)
	}
	s.container = answer.GetContainerId()
	if _, err := s.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: s.container}); err != nil {
		return call("StartContainer", err)
	}
	return s.expectState(ctx, runtimeapi.ContainerState_CONTAINER_RUNNING)
}

func (s *smoke) expectState(ctx context.Context, want runtimeapi.ContainerState) error {
	answer, err := s.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: s.container})
	if err != nil {
		return call("ContainerStatus", err)
	}
	if got := answer.GetStatus(); got.GetState() != want {
		return fmt.Errorf("ContainerStatus: the container is %s instead of %s (exit code %d: %s %s)", got.GetState(), want, got.GetExitCode(), got.GetReason(), got.GetMessage())
	}
	return nil
}

// Processes are what Smoke runs.
type Processes struct {
	// Sandbox and Container are the first processes, in the host's PID namespace.
	Sandbox, Container int
	// Rlimits are the limits that are set for the container's, by their names in OCI; others are inherited.
	Rlimits map[string]Rlimit
}

// Rlimit is a limit in a specification of OCI.
type Rlimit struct{ Soft, Hard uint64 }

// processes reads what containerd says of them in its answers' verbose part, which CRI leaves to the runtime: internal/cri/server of 2.4,
// container_status.go and sandbox_status.go, the same in pkg/cri/server of 1.6.
func (s *smoke) processes(ctx context.Context) error {
	sandbox, err := s.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.sandbox, Verbose: true})
	if err != nil {
		return call("PodSandboxStatus", err)
	}
	container, err := s.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: s.container, Verbose: true})
	if err != nil {
		return call("ContainerStatus", err)
	}
	var of, in struct {
		PID         int `json:"pid"`
		RuntimeSpec struct {
			Process struct {
				Rlimits []struct {
					Type string `json:"type"`
					Rlimit
				} `json:"rlimits"`
			} `json:"process"`
		} `json:"runtimeSpec"`
	}
	if errors.Join(json.Unmarshal([]byte(sandbox.GetInfo()["info"]), &of), json.Unmarshal([]byte(container.GetInfo()["info"]), &in)) != nil || of.PID == 0 || in.PID == 0 {
		return nil
	}
	p := Processes{Sandbox: of.PID, Container: in.PID, Rlimits: map[string]Rlimit{}}
	for _, limit := range in.RuntimeSpec.Process.Rlimits {
		p.Rlimits[limit.Type] = limit.Rlimit
	}
	s.Look(p)
	return nil
}

func (s *smoke) exec(ctx context.Context) error {
	answer, err := s.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: s.container, Cmd: s.Exec, Timeout: 10})
	if err != nil {
		return call("ExecSync", err)
	}
	if answer.GetExitCode() != 0 {
		return fmt.Errorf("ExecSync: exit code %d: %s", answer.GetExitCode(), strings.TrimSpace(string(answer.GetStdout())+string(answer.GetStderr())))
	}
	return nil
}

func (s *smoke) stats(ctx context.Context) error {
	return poll(ctx, func() error {
		answer, err := s.runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: s.container})
		if err != nil {
			return call("ContainerStats", err)
		}
		if answer.GetStats().GetCpu() == nil || answer.GetStats().GetMemory() == nil {
			return errors.New("ContainerStats: no CPU or memory statistics")
		}
		return nil
	})
}

func (s *smoke) log(ctx context.Context) error {
	path := filepath.Join(s.LogDir, s.logPath())
	return poll(ctx, func() error {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read the container's log: %w", err)
		}
		// "<RFC 3339 time> stdout F <text>"
		for line := range strings.Lines(string(data)) {
			fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
			if len(fields) < 4 || fields[3] == "" {
				continue
			}
			_, err := time.Parse(time.RFC3339Nano, fields[0])
			if err == nil && slices.Contains([]string{"stdout", "stderr"}, fields[1]) {
				return nil
			}
		}
		return fmt.Errorf("read the container's log %s: no line in the CRI format", path)
	})
}

func (s *smoke) stop(ctx context.Context) error {
	if _, err := s.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: s.container, Timeout: 2}); err != nil {
		return call("StopContainer", err)
	}
	// On a busy host containerd 2.4 returns when the shim is gone, a moment before it has noted the exit.
	return poll(ctx, func() error { return s.expectState(ctx, runtimeapi.ContainerState_CONTAINER_EXITED) })
}

// remove takes everything away and checks that the network's lease went with it.
func (s *smoke) remove(ctx context.Context) error {
	var errs []error
	if s.sandboxConfig != nil {
		// By label, not by ID: a RunPodSandbox whose answer was lost leaves a sandbox that this run does not know.
		errs = append(errs, s.removeLeftovers(ctx))
		log := filepath.Join(s.LogDir, s.logPath())
		if err := unix.Unlink(log); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove log %s: %w", log, err))
		}
		_ = unix.Rmdir(s.LogDir) // if it is empty now
		removeCgroups(s.cgroupParent())
	}
	if s.sandbox != "" && !s.HostNetwork {
		errs = append(errs, poll(ctx, s.leaseGone))
	}
	return errors.Join(errs...)
}

// removeCgroups removes the sandbox's empty parent: runc makes it, and only systemd collects its own.
func removeCgroups(parent string) {
	for _, pattern := range []string{"/sys/fs/cgroup" + parent, "/sys/fs/cgroup/*" + parent} {
		groups, _ := filepath.Glob(pattern)
		for _, group := range groups {
			_ = unix.Rmdir(group) // which does nothing while anything runs in it
		}
	}
}

func (s *smoke) leaseGone() error {
	files, err := filepath.Glob(filepath.Join(s.LeaseDir, "*", "*"))
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(data), s.sandbox) {
			return fmt.Errorf("RemovePodSandbox: the lease %s was not released", file)
		}
	}
	return nil
}

// removeLeftovers removes every sandbox that a smoke test made, with its containers. On the host's network it leaves those of the pod network:
// the CNI's agent may be down, without which they cannot be removed. The kubelet removes them later.
func (s *smoke) removeLeftovers(ctx context.Context) error {
	labels := map[string]string{smokeLabel: "true"}
	if s.HostNetwork {
		labels[networkLabel] = s.network()
	}
	answer, err := s.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: labels}})
	if err != nil {
		return call("ListPodSandbox", err)
	}
	var errs []error
	for _, sandbox := range answer.GetItems() {
		if _, err := s.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox.GetId()}); ignoreNotFound(err) != nil {
			errs = append(errs, call("StopPodSandbox", err))
			continue
		}
		if _, err := s.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.GetId()}); ignoreNotFound(err) != nil {
			errs = append(errs, call("RemovePodSandbox", err))
		}
	}
	return errors.Join(errs...)
}

// poll repeats check until it succeeds or settle is over, and then returns what it said last.
func poll(ctx context.Context, check func() error) error {
	deadline := time.NewTimer(settle)
	defer deadline.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-deadline.C:
			return err
		case <-tick.C:
		}
	}
}
