package inspect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var kubeletCheck = check{id: protocol.CheckKubelet, run: checkKubelet}

func checkKubelet(ctx context.Context, i *inspection) error {
	i.report.Progress("kubelet", 0, 0, "")
	setup, err := kubelet.Find(ctx, i.h.Systemd, node.Proc)
	if errors.Is(err, kubelet.ErrInContainer) {
		return node.Refuse("replace the node: on RKE1 and the like even the kubelet is a Docker container", "%v", err)
	}
	if err != nil {
		return err
	}
	i.setup = setup
	i.KubeletArgs, i.KubeletUnitFiles, i.Facts.KubeletVersion = setup.Args, setup.UnitFiles, setup.Version.String()
	var uname unix.Utsname
	if err := unix.Uname(&uname); err == nil {
		i.Facts.Kernel = unix.ByteSliceToString(uname.Release[:])
	}
	i.Facts.OS = host.OSName()
	if i.Facts.OldEndpoint, err = setup.Endpoint(); err != nil {
		return err
	}
	if i.Facts.CgroupDriver, err = setup.CgroupDriver(); err != nil {
		return err
	}
	if i.HealthzURL, err = setup.HealthzURL(); err != nil {
		return err
	}
	if i.HealthzURL == "" {
		return node.Refuse("set healthzPort in "+setup.ConfigFile(), "the kubelet's health endpoint is switched off: nobody could tell whether it works after the switch")
	}
	return findOldRuntime(ctx, i)
}

// findOldRuntime finds Docker behind the kubelet, and how it is set to run pods' networks.
func findOldRuntime(ctx context.Context, i *inspection) error {
	if i.Dockershim() {
		plugin, _ := i.setup.Flag("network-plugin")
		if plugin != "cni" {
			return node.Refuse("move the cluster to a CNI network first", "the kubelet runs with --network-plugin=%q: containerd needs CNI", plugin)
		}
		i.DockerSocket, _ = i.setup.Flag("docker-endpoint")
		i.CNIConfDir, _ = i.setup.Flag("cni-conf-dir")
		i.CNIBinDir, _ = i.setup.Flag("cni-bin-dir")
		return nil
	}
	var found cri.Report
	err := host.Within(ctx, 10*time.Second, func(ctx context.Context) error {
		return cri.With(ctx, i.Facts.OldEndpoint, func(c *cri.Client) (err error) {
			found, err = c.Check(ctx)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("ask the kubelet's runtime at %s: %w", i.Facts.OldEndpoint, err)
	}
	if found.RuntimeName != "docker" {
		return node.Refuse("", "the kubelet does not run on Docker but on %s %s (%s)", found.RuntimeName, found.RuntimeVersion, i.Facts.OldEndpoint)
	}
	processes, err := host.FindProcesses(node.Proc, "cri-dockerd")
	if err != nil || len(processes) == 0 {
		return err
	}
	flag := func(name string) string { return kubelet.FlagOf(processes[0].Args, name) }
	if plugin := flag("network-plugin"); plugin != "" && plugin != "cni" {
		return node.Refuse("move the cluster to a CNI network first", "cri-dockerd runs with --network-plugin=%s: containerd needs CNI", plugin)
	}
	i.DockerSocket, i.CNIConfDir, i.CNIBinDir = flag("docker-endpoint"), flag("cni-conf-dir"), flag("cni-bin-dir")
	return nil
}
