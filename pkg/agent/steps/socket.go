package steps

import (
	"path/filepath"

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
