package pods

import (
	"context"
	"path/filepath"
	"slices"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// dockerContainerds are where the containerds of a Docker that systemd runs listen: the host's, and the one that dockerd starts where it finds
// none.
var dockerContainerds = []string{"/run/containerd/containerd.sock", "/run/docker/containerd/containerd.sock"}

// EndDockerShims ends what a Docker that is down has left: with live-restore, or where runc was in the middle of making a container, which
// Docker lists as one that does not run. A second Docker may use the same containerd, and the same namespace: only containers that have
// a directory below the root of this Docker's data are ended, and those of pods, of which Docker may have lost sight.
func EndDockerShims(ctx context.Context, root string) error {
	return endShims(ctx, podProcesses{proc: node.Proc, freezer: host.Freezer, kill: killProcess}, root)
}

func endShims(ctx context.Context, p podProcesses, root string) error {
	p.namespace = dockerNamespace
	pods := map[string]bool{} // whose processes may be gone when their shims are to be ended
	p.ours = func(shim host.Process, all []host.Process) bool {
		if containerID.MatchString(shimID(shim)) && !host.Absent(filepath.Join(root, "containers", shimID(shim))) {
			return true
		}
		if slices.ContainsFunc(dockerContainerds, func(address string) bool { return serves(shim, address, dockerNamespace) }) &&
			slices.ContainsFunc(all, func(child host.Process) bool { return host.ParentPID(p.proc, child.PID) == shim.PID && inPod(child) }) {
			pods[shimID(shim)] = true
		}
		return pods[shimID(shim)]
	}
	return host.Within(ctx, killWait, func(ctx context.Context) error { return p.end(ctx, true) })
}
