package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// podProcesses finds the processes of containers where the kernel lists them: below the shims of one of containerd's namespaces, and in
// the cgroups of their containers. Those of another containerd, such as one inside a container, have another socket or PID namespace.
type podProcesses struct {
	proc, address, namespace string
	// ours, if it is set, takes the place of address and namespace: it reports which shims are meant, among all processes.
	ours func(shim host.Process, all []host.Process) bool
	// freezer is where cgroup v1's is mounted, if it is.
	freezer string
	kill    func(pid int) error

	// cgroups are those of containers, as lines of /proc/<pid>/cgroup without the hierarchy's number. They are kept when their shim
	// is gone.
	cgroups []string
	// sandboxes are all pods found, by ID, with the paths of their network namespaces; empty where it is not known.
	sandboxes map[string]string
}

func killProcess(pid int) error { return unix.Kill(pid, unix.SIGKILL) }

// end kills containers' processes until there are none, which is when their shims can go, too: by them the containers are found.
func (p *podProcesses) end(ctx context.Context, shims bool) error {
	return host.Poll(ctx, 200*time.Millisecond, func(context.Context) error {
		ofShims, ofContainers, err := p.find()
		if err != nil {
			return err
		}
		left, what := ofContainers, "process(es)"
		if len(left) == 0 && shims {
			left, what = ofShims, "shim(s)"
		}
		if len(left) == 0 {
			return nil
		}
		errs := []error{fmt.Errorf("%d %s of %s run even after SIGKILL: %s", len(left), what, owners[p.namespace], host.ProcessNames(left))}
		for _, process := range left {
			errs = append(errs, p.kill(process.PID), p.thaw(process))
		}
		return errors.Join(errs...)
	})
}

// thaw lets a killed process end: its container can be paused, or runc was killed while it held the container frozen.
func (p *podProcesses) thaw(process host.Process) error {
	var errs []error
	for _, cgroup := range freezers(process.Cgroup) {
		errs = append(errs, host.Thaw(p.freezer, cgroup))
	}
	return errors.Join(errs...)
}

// freezers are the cgroups of cgroup v1's freezer that can hold a container's process: its own, and those above up to the container's.
func freezers(text string) []string {
	var cgroups []string
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) < 3 || !slices.Contains(strings.Split(fields[1], ","), "freezer") {
			continue
		}
		for cgroup := fields[2]; containerID.MatchString(cgroup); cgroup = path.Dir(cgroup) {
			cgroups = append(cgroups, cgroup)
		}
	}
	return cgroups
}

// The namespaces of containerd that the kubelet's containers are in, and Docker's by default.
const (
	podNamespace    = "k8s.io"
	dockerNamespace = "moby"
)

// owners say for people whose the containers of a namespace are.
var owners = map[string]string{podNamespace: "containerd's pods", dockerNamespace: "Docker's containers"}

func (p *podProcesses) find() (shims, containers []host.Process, err error) {
	all, err := host.Processes(p.proc)
	if err != nil {
		return nil, nil, err
	}
	var pids []int
	for _, process := range all {
		if p.isShim(process, all) {
			shims, pids = append(shims, process), append(pids, process.PID)
			if p.sandboxes == nil {
				p.sandboxes = map[string]string{}
			}
			if id := shimID(process); p.sandboxes[id] == "" {
				p.sandboxes[id] = networkNamespace(filepath.Join(p.proc, strconv.Itoa(process.PID), "cwd"))
			}
		}
	}
	var children []int
	for _, process := range all {
		if slices.Contains(pids, process.PID) || !slices.Contains(pids, host.ParentPID(p.proc, process.PID)) {
			continue
		}
		children = append(children, process.PID)
		for _, cgroup := range containerCgroups(process.Cgroup) {
			// Where the host itself is a container, its own cgroup looks like one.
			isHost := slices.ContainsFunc(all, func(x host.Process) bool {
				return (x.PID == 1 || x.PID == os.Getpid() || slices.Contains(pids, x.PID)) && inCgroup(x.Cgroup, cgroup)
			})
			if !isHost && !slices.Contains(p.cgroups, cgroup) {
				p.cgroups = append(p.cgroups, cgroup)
			}
		}
	}
	for _, process := range all {
		in := func(cgroup string) bool { return inCgroup(process.Cgroup, cgroup) }
		if slices.Contains(children, process.PID) || slices.ContainsFunc(p.cgroups, in) {
			containers = append(containers, process)
		}
	}
	return shims, containers, nil
}

// networkNamespace is the path of that of a container, by its bundle, in which its shim runs.
func networkNamespace(bundle string) string {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return ""
	}
	var spec struct {
		Linux struct {
			Namespaces []struct{ Type, Path string }
		}
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return ""
	}
	for _, namespace := range spec.Linux.Namespaces {
		if namespace.Type == "network" {
			return namespace.Path
		}
	}
	return ""
}

func (p *podProcesses) isShim(process host.Process, all []host.Process) bool {
	if !node.IsShim(process) || host.PIDNamespace(p.proc, strconv.Itoa(process.PID)) != host.PIDNamespace(p.proc, "self") {
		return false
	}
	if p.ours != nil {
		return p.ours(process, all)
	}
	return serves(process, p.address, p.namespace)
}

// serves reports whether a shim is of one containerd's, and of one of its namespaces.
func serves(shim host.Process, address, namespace string) bool {
	return kubelet.FlagOf(shim.Args, "namespace") == namespace &&
		kubelet.SameEndpoint("unix://"+kubelet.FlagOf(shim.Args, "address"), "unix://"+address)
}

// shimID is the container of a shim, or the pod. Those of Docker up to 19.03 have it in the path of their directory alone.
func shimID(shim host.Process) string {
	if id := kubelet.FlagOf(shim.Args, "id"); id != "" {
		return id
	}
	return filepath.Base(kubelet.FlagOf(shim.Args, "workdir"))
}

// containerID is how containerd and Docker name a container, in the name of its cgroup too, whatever the driver.
var containerID = regexp.MustCompile(`[0-9a-f]{64}`)

// containerCgroups are the cgroups that a container's first process is in, up to the container's own, by hierarchy.
func containerCgroups(text string) []string {
	var cgroups []string
	for line := range strings.Lines(text) {
		_, cgroup, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		at := containerID.FindAllStringIndex(cgroup, -1)
		if len(at) == 0 {
			continue
		}
		end := at[len(at)-1][1]
		if slash := strings.IndexByte(cgroup[end:], '/'); slash >= 0 {
			cgroup = cgroup[:end+slash]
		}
		cgroups = append(cgroups, cgroup)
	}
	return cgroups
}

// inCgroup reports whether a process with this /proc/<pid>/cgroup is in a cgroup or below.
func inCgroup(text, cgroup string) bool {
	for line := range strings.Lines(text) {
		_, is, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		if is == cgroup || strings.HasPrefix(is, cgroup+"/") {
			return true
		}
	}
	return false
}
