package inspect

import (
	"cmp"
	"context"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

var containerdCheck = check{id: protocol.CheckContainerd, needs: []string{protocol.CheckKubelet}, run: checkContainerd}

func checkContainerd(ctx context.Context, i *inspection) error {
	i.report.Progress("containerd", 0, 0, "")
	unit, err := i.h.Systemd.State(ctx, node.ContainerdUnit)
	if err != nil {
		return err
	}
	if err := useContainerd(ctx, i, unit); err != nil {
		return err
	}
	config, err := host.ReadFile(i.ContainerdConfig)
	if err != nil {
		return err
	}
	// One that containerd does not take as it is, it may take as it will be.
	effective, err := desired.EffectiveContainerd(ctx, i.h, i.Found, config)
	if err != nil {
		effective, err = containerd.GuessEffective(i.ContainerdConfig, config)
	}
	if err != nil {
		return err
	}
	i.layout = effective.Layout
	i.ContainerdAddress = cmp.Or(i.ContainerdAddress, i.layout.Address)
	if err := keepApart(i, unit); err != nil {
		return err
	}
	i.Facts.NewEndpoint = "unix://" + i.ContainerdAddress
	if kubelet.SameEndpoint(i.Facts.OldEndpoint, i.Facts.NewEndpoint) {
		return node.Refuse("", "the kubelet is on containerd already (%s)", i.Facts.OldEndpoint)
	}
	i.RestrictOOM, err = host.LacksSysResource(node.Proc)
	return err
}

// useContainerd finds the one that the host has, or a way to one that fits the kubelet.
func useContainerd(ctx context.Context, i *inspection, unit host.UnitState) error {
	if unit.Load == "masked" {
		return node.Refuse("systemctl unmask "+node.ContainerdUnit, "%s is masked", node.ContainerdUnit)
	}
	var was *version.Version
	i.ContainerdConfig = containerd.DefaultConfigPath
	if unit.Exists() {
		process, err := findContainerd(ctx, i.h)
		if err != nil {
			return err
		}
		i.ContainerdBinary, i.ContainerdConfig, i.ContainerdRoot, i.ContainerdAddress = process.binary, process.config, process.root, process.address
		version, err := containerd.Version(ctx, i.ContainerdBinary, i.h.Runner.Run)
		if err != nil {
			return err
		}
		i.Facts.ContainerdVersion = version.String()
		if version.AtLeast(1, 6) {
			return facts.Fits(i.setup.Version, version)
		}
		was = &version
	}
	install, err := planInstall(ctx, i, was)
	if err != nil {
		return err
	}
	i.Install, i.ContainerdBinary = install, install.Binary
	i.Facts.ContainerdVersion, i.Facts.ContainerdInstall = install.Version, install.String()
	by := ""
	switch {
	case install.From == facts.FromPackages:
		by = "; known from " + i.listsUsed
	case i.listsUnknown != "":
		by = "; a package would come first, if newer package lists had one: " + i.listsUnknown
	}
	if len(i.Docker.Ulimits) > 0 {
		by += "; " + desired.BaseSpecFile + ", which holds Docker's default-ulimits, can only be shown once it is there"
	}
	i.note(protocol.CheckInstall, "%s%s", i.Facts.ContainerdInstall, by)
	return nil
}

func findContainerd(ctx context.Context, h *node.Host) (containerdProcess, error) {
	p, err := h.Systemd.Show(ctx, node.ContainerdUnit, "MainPID")
	if err != nil {
		return containerdProcess{}, err
	}
	found := containerdProcess{config: containerd.DefaultConfigPath}
	pid, _ := strconv.Atoi(p["MainPID"])
	if pid <= 0 {
		found.binary, err = host.LookPath("containerd")
		return found, err
	}
	process, err := host.ReadProcess(node.Proc, pid)
	if err != nil {
		return containerdProcess{}, err
	}
	found.binary = process.Exe
	flag := func(names ...string) (value string) {
		for _, name := range names {
			value = cmp.Or(kubelet.FlagOf(process.Args, name), value)
		}
		return value
	}
	found.config = cmp.Or(flag("config", "c"), found.config)
	found.root, found.address = flag("root"), flag("address", "a")
	return found, nil
}

// containerdProcess is how the service runs containerd.
type containerdProcess struct {
	binary, config string
	// root and address are those of its flags, which count whatever the config says.
	root, address string
}

// keepApart gives the kubelet's containerd an address of its own where the usual one would draw Docker to it. One that runs already stays.
func keepApart(i *inspection, unit host.UnitState) error {
	if i.ContainerdAddress != containerd.DefaultAddress || unit.Running() {
		return nil
	}
	private, err := dockerRunsContainerd(i)
	if err == nil && private {
		i.ContainerdAddress = facts.ApartAddress
		i.warn("Docker runs a containerd of its own and must not find another: the kubelet's endpoint will be unix://%s, and %s a link to it once Docker is stopped",
			facts.ApartAddress, containerd.DefaultAddress)
	}
	return err
}

func dockerRunsContainerd(i *inspection) (bool, error) {
	daemon := 0
	if i.daemon != nil {
		daemon = i.daemon.PID
	}
	return privateContainerd(node.Proc, daemon)
}

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
