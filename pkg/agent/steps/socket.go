package steps

import (
	"path/filepath"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// A Docker that was not told of a containerd (--containerd) runs one of its own as its child, unless there is a file at containerd's usual
// address when it starts: then it takes that one, whoever runs it (moby 20.10 to 28, cmd/dockerd/daemon.go, systemContainerdRunning). It would lose sight
// of every container that it left running, the kubelet would start them a second time, and with that containerd they would all go down.
// So beside such a Docker the containerd of the kubelet's has another address. When Docker is stopped and held, a link takes the usual
// one, for what else looks there; it goes before Docker may start.
const (
	// linkFile has systemd-tmpfiles make the link at each boot, since /run is empty then.
	linkFile = "/etc/tmpfiles.d/kubectl-runtime-containerd.conf"
)

// privateContainerd reports whether a Docker runs a containerd of its own: the given one, or another that its name tells. Up to Docker 18.06 that
// is docker-containerd, on CentOS 7 docker-containerd-current.
func privateContainerd(proc string, daemon int) (bool, error) {
	all, err := host.Processes(proc)
	if err != nil {
		return false, err
	}
	parents := map[int]bool{daemon: true}
	for _, p := range all {
		if strings.HasPrefix(filepath.Base(p.Exe), "dockerd") || strings.HasPrefix(filepath.Base(p.Args[0]), "dockerd") {
			parents[p.PID] = true
		}
	}
	for _, p := range all {
		name := strings.TrimPrefix(filepath.Base(p.Exe), "docker-")
		if strings.HasPrefix(name, "containerd") && !strings.HasPrefix(name, "containerd-shim") && parents[host.ParentPID(proc, p.PID)] {
			return true, nil
		}
	}
	return false, nil
}

func (i *inspection) privateContainerd() (bool, error) {
	daemon := 0
	if i.daemon != nil {
		daemon = i.daemon.PID
	}
	return privateContainerd(node.Proc, daemon)
}

// keepApart gives the kubelet's containerd an address of its own where the usual one would draw Docker to it. One that runs already stays.
func (i *inspection) keepApart(unit host.UnitState) error {
	if i.ContainerdAddress != containerd.DefaultAddress || unit.Running() {
		return nil
	}
	private, err := i.privateContainerd()
	if err == nil && private {
		i.ContainerdAddress = facts.ApartAddress
		i.warn("Docker runs a containerd of its own and must not find another: the kubelet's endpoint will be unix://%s, and %s a link to it once Docker is stopped",
			facts.ApartAddress, containerd.DefaultAddress)
	}
	return err
}

// linkSocket gives containerd its usual address, too. Nothing of the agent's depends on it.
func linkSocket(h *node.Host, report engine.Report) {
	found, err := facts.Of(h)
	if err != nil || found.ContainerdAddress != facts.ApartAddress || h.Spec.KeepDocker {
		return
	}
	target := filepath.Base(facts.ApartAddress)
	err = host.Replace(linkFile, []byte("# Written by kubectl-runtime: Docker may not see this while it runs a containerd of its own.\n"+
		"L "+containerd.DefaultAddress+" - - - - "+target+"\n"), 0o644)
	if err == nil {
		err = host.Link(containerd.DefaultAddress, target)
	}
	if err != nil {
		report.Warn("containerd cannot be reached at its usual address as well: " + err.Error())
	}
}

// unlinkSocket takes back what linkSocket did.
func unlinkSocket() error {
	if err := host.Remove(linkFile); err != nil {
		return err
	}
	return host.Unlink(containerd.DefaultAddress, filepath.Base(facts.ApartAddress))
}
