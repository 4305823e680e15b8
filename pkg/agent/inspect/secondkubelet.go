package inspect

import (
	"context"
	"strconv"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var secondKubeletCheck = check{id: protocol.CheckSecondKubelet, run: checkSecondKubelet}

// checkSecondKubelet refuses a kubelet beside that of kubelet.service: it would go on using Docker.
func checkSecondKubelet(ctx context.Context, i *inspection) error {
	s, err := serviceOf(ctx, i.h, kubelet.Unit)
	if err != nil {
		return err
	}
	other, err := otherProcess(node.Proc, "kubelet", s.pid)
	if err != nil || other == nil {
		return err
	}
	return node.Refuse("stop it", "a second kubelet runs as process %d (%s): it is not the one of %s, which is process %d",
		other.PID, other.Exe, s.unit, s.pid)
}

// otherProcess finds a program that runs beside a service's main process, not inside a container. A child of that process may have
// its parent's name until it becomes another program.
func otherProcess(proc, name string, main int) (*host.Process, error) {
	processes, err := host.FindProcesses(proc, name)
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		if p.PID != main && host.ParentPID(proc, p.PID) != main && host.PIDNamespace(proc, strconv.Itoa(p.PID)) == host.PIDNamespace(proc, "self") {
			return &p, nil
		}
	}
	return nil, nil
}
