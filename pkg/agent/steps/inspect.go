package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cni"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images/adopt"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

const ()

// inspect looks at everything before anything is changed, and refuses what cannot be switched safely.
func inspect(h *node.Host) engine.Step {
	return step[facts.Found]{
		id: facts.InspectID, title: "Inspect the host",
		record: func(ctx context.Context, report engine.Report) (facts.Found, error) {
			i := &inspection{h: h, report: report}
			for _, look := range looks() {
				if err := i.take(ctx, look); err != nil {
					return facts.Found{}, err
				}
			}
			return i.Found, nil
		},
		apply: func(_ context.Context, found facts.Found, report engine.Report) error {
			have := "containerd " + found.Facts.ContainerdVersion
			if found.Install != nil {
				have += " to be installed"
				report.Info(found.Install.String())
			}
			report.Progress(fmt.Sprintf("kubelet %s, Docker %s, %s", found.Facts.KubeletVersion, found.Facts.DockerVersion, have), 0, 0, "")
			report.Facts(found.Facts)
			return nil
		},
	}
}

type inspection struct {
	h      *node.Host
	report engine.Report
	facts.Found
	setup kubelet.Setup
	// daemon is the process of Docker's daemon, nil for the reason findDaemonErr.
	daemon        *host.Process
	findDaemonErr error
	info          docker.Info
	containers    []docker.Container
	images        []docker.Image
	layout        containerd.Layout
	// listsUnknown is set where a switch would fetch newer package lists than a plan may; listsUsed is what an installation goes by.
	listsUnknown, listsUsed string

	current  look
	failed   []string // the checks of looks that failed, or could not be taken
	findings []protocol.Finding
}

// warn is for what the switch does not stop at.
func (i *inspection) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if slices.Contains(i.Facts.Warnings, text) {
		return
	}
	i.Facts.Warnings = append(i.Facts.Warnings, text)
	i.note(i.current.warning, "%s", text)
}

func (i *inspection) lookAtKubelet(ctx context.Context) error {
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
	return i.lookAtOldRuntime(ctx)
}

// lookAtOldRuntime finds Docker behind the kubelet, and how it was told to run pods' networks.
func (i *inspection) lookAtOldRuntime(ctx context.Context) error {
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

func (i *inspection) lookAtDocker(ctx context.Context) error {
	i.report.Progress("Docker", 0, 0, "")
	return docker.With(i.DockerSocket, func(d *docker.Client) error {
		info, err := d.Info(ctx)
		if err != nil {
			return err
		}
		i.Facts.DockerVersion, i.Facts.DockerRoot = info.Version, info.Root
		i.info = info
		settings := facts.ReadKernel(facts.ReadSysctl) // while Docker runs
		i.Kernel = &settings
		if info.CgroupDriver != i.Facts.CgroupDriver {
			i.warn("Docker's cgroup driver is %s, the kubelet's setting is %s: containerd is set up with the kubelet's", info.CgroupDriver, i.Facts.CgroupDriver)
		}
		if i.containers, err = d.Containers(ctx); err != nil {
			return err
		}
		if i.images, err = d.Images(ctx); err != nil {
			return err
		}
		return i.findSandboxImage(ctx, d)
	})
}

// findSandboxImage takes what pods run on today: the agent's own pod has a sandbox, too.
func (i *inspection) findSandboxImage(ctx context.Context, d *docker.Client) error {
	for _, c := range i.containers {
		_, _, uid := c.Pod()
		if c.Sandbox() && (i.Facts.SandboxImage == "" || uid == i.h.Spec.Pod.UID) {
			i.Facts.SandboxImage = c.Image
		}
	}
	if i.Facts.SandboxImage == "" {
		i.Facts.SandboxImage, _ = i.setup.Flag("pod-infra-container-image")
	}
	if i.Facts.SandboxImage == "" {
		return node.Refuse("", "the sandbox (pause) image is unknown: Docker holds no pod, and the kubelet has no --pod-infra-container-image")
	}
	image, err := d.Image(ctx, i.Facts.SandboxImage)
	if err != nil {
		return fmt.Errorf("look for the sandbox image: %w", err)
	}
	if strings.HasPrefix(i.Facts.SandboxImage, "sha256:") {
		if len(image.RepoTags) == 0 {
			return node.Refuse("docker tag it on the node", "the sandbox image %s has no name that containerd could use", image.ID)
		}
		i.Facts.SandboxImage = image.RepoTags[0]
	}
	return nil
}

func (i *inspection) lookAtContainerd(ctx context.Context) error {
	i.report.Progress("containerd", 0, 0, "")
	unit, err := i.h.Systemd.State(ctx, node.ContainerdUnit)
	if err != nil {
		return err
	}
	if err := i.findContainerd(ctx, unit); err != nil {
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
	if err := i.keepApart(unit); err != nil {
		return err
	}
	i.Facts.NewEndpoint = "unix://" + i.ContainerdAddress
	if kubelet.SameEndpoint(i.Facts.OldEndpoint, i.Facts.NewEndpoint) {
		return node.Refuse("", "the kubelet is on containerd already (%s)", i.Facts.OldEndpoint)
	}
	i.RestrictOOM, err = host.LacksSysResource(node.Proc)
	return err
}

// findContainerd finds the one that the host has, or a way to one that fits the kubelet.
func (i *inspection) findContainerd(ctx context.Context, unit host.UnitState) error {
	if unit.Load == "masked" {
		return node.Refuse("systemctl unmask "+node.ContainerdUnit, "%s is masked", node.ContainerdUnit)
	}
	var was *containerd.BinaryVersion
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
	install, err := i.planInstall(ctx, was)
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

func (i *inspection) lookAtNetwork(context.Context) error {
	i.report.Progress("CNI", 0, 0, "")
	network, err := cni.Detect(i.CNIConfDir, i.CNIBinDir)
	if err != nil {
		return err
	}
	if network.Name == "" {
		return node.Refuse("", "there is no usable CNI configuration in %s", network.ConfDir)
	}
	if len(network.Missing) > 0 {
		return node.Refuse("put them into one directory", "CNI plugin %s of %s is in none of %s",
			strings.Join(network.Missing, ", "), network.File, strings.Join(network.BinDirs, ", "))
	}
	i.CNIConfDir, i.CNIBinDir = network.ConfDir, network.BinDirs[0]
	return nil
}

// lookAtFileSystem refuses what overlayfs does not run on: xfs made with ftype=0, above all.
func (i *inspection) lookAtFileSystem(context.Context) error {
	root, snapshotter := host.Existing(i.layout.Root), cmp.Or(desired.Snapshotter(i.Docker, i.layout), i.layout.Snapshotter)
	if snapshotter != adopt.Snapshotter {
		return nil
	}
	tells, err := host.TellsTypes(root)
	if err == nil && !tells {
		return node.Refuse("give containerd a root on a file system that can, such as xfs made with ftype=1, or ext4",
			"the file system of %s does not tell the types of directory entries (d_type), which the snapshotter %s needs", root, snapshotter)
	}
	return err
}

func (i *inspection) lookAtSpace(ctx context.Context) error {
	var wanted []docker.Image
	refs := desired.Images(i.h, i.containers, i.images, i.Facts.SandboxImage)
	err := docker.With(i.DockerSocket, func(d *docker.Client) error {
		for _, ref := range refs {
			image, err := d.Image(ctx, ref)
			if docker.IsNotFound(err) {
				continue // a pod's image that was not pulled yet
			}
			if err != nil {
				return err
			}
			// Docker's containerd store tells the unpacked size in this list only.
			for _, listed := range i.images {
				if listed.ID == image.ID {
					image.Size = max(image.Size, listed.Size)
				}
			}
			if !slices.ContainsFunc(wanted, func(have docker.Image) bool { return have.ID == image.ID }) {
				wanted = append(wanted, image)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	root, temporary, err := i.Spaces(i.layout.Root)
	if err != nil {
		return err
	}
	linkable := i.linkable(ctx, root.Dir)
	demands := []images.Demand{{Space: root, Bytes: images.Need(wanted, linkable)}}
	if !i.info.ContainerdStore {
		demands = append(demands, images.Demand{Space: temporary, Bytes: images.NeedTemporary(wanted, linkable)})
	}
	free, err := images.Free(root.Dir)
	if err != nil {
		return err
	}
	i.note(protocol.CheckDisk, "%d images need about %d MiB in %s, and %d MiB are free", len(wanted), demands[0].Bytes>>20, i.layout.Root, free>>20)
	if err := images.CheckSpace(demands...); err != nil {
		return node.Refuse("free some, for example with docker image prune", "there is not enough space for the images: %v", err)
	}
	return nil
}

// linkable tells which images probably need hardly any space (images.Need). Whatever keeps it from knowing, keeps them from being linked.
func (i *inspection) linkable(ctx context.Context, root string) func(id string) bool {
	if !i.info.ContainerdStore {
		return images.Adoptable(i.Facts.DockerRoot, root, i.layout.Snapshotter)
	}
	var there func(id string) bool
	_ = host.Within(ctx, 10*time.Second, func(ctx context.Context) error {
		return containerd.With(i.ContainerdAddress, func(c *client.Client) (err error) {
			there, err = images.Shareable(ctx, c, i.info.Namespace, i.layout.Snapshotter)
			return err
		})
	})
	return there
}

// lookAtAPI tries the kubelet's own credentials, with which the host watches the node after the switch.
func (i *inspection) lookAtAPI(ctx context.Context) error {
	path, _ := i.setup.Flag("kubeconfig")
	if path == "" {
		i.warn("the kubelet has no --kubeconfig: the host cannot tell by itself whether the API server sees the node as Ready")
		return nil
	}
	if err := i.tryAPI(ctx, path); err != nil {
		if ctx.Err() != nil {
			return err
		}
		i.warn("the host cannot tell by itself whether the API server sees the node as Ready: %v", err)
		return nil
	}
	i.Kubeconfig = path
	return nil
}

// apiWait is for how long an API server that does not answer is asked again: one that is missed for a moment must not cost the switch its
// proof that the node is Ready. One that is not reached at all may be behind a proxy that only the kubelet's unit names.
const apiWait = 30 * time.Second

func (i *inspection) tryAPI(ctx context.Context, kubeconfig string) error {
	api, err := kubelet.NewAPI(os.ReadFile, kubeconfig)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, apiWait)
	defer cancel()
	return host.Poll(ctx, time.Second, func(ctx context.Context) error {
		_, err := api.Node(ctx, i.h.Spec.Node)
		if err != nil && !kubelet.MayPass(err) {
			err = host.Permanent(err)
		}
		return err
	})
}

// planKubelet makes sure that the cutover will know how to change the kubelet's flags.
func (i *inspection) planKubelet(context.Context) error {
	i.setup.LogMaxSize, i.setup.LogMaxFiles = i.Docker.LogMaxSize, i.Docker.LogMaxFiles
	if i.setup.LogMaxSize > 0 && i.setup.ConfigFile() == "" {
		i.warn("Docker's log-opts are lost: the kubelet has no config file that could hold containerLogMaxSize")
	}
	if _, err := i.setup.Plan(i.Facts.NewEndpoint); err != nil {
		return err
	}
	return nil
}
