package inspect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/bundle"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/packages"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// installRoot holds the folders of containerds that no package manager knows.
const installRoot = "/opt/kubectl-runtime"

// waysToContainerd is the hint of every refusal for want of a containerd.
const waysToContainerd = "install containerd 1.6 or later on the node (containerd from the distribution, containerd.io from Docker's packages); " +
	"or set up a repository that has it; or copy upstream's containerd-VERSION-linux-ARCH.tar.gz to the node and name it with --containerd-archive=PATH"

// planInstall decides how a containerd is installed; was is the one that is too old, nil if there is none.
func planInstall(ctx context.Context, i *inspection, was *version.Version) (*facts.Installation, error) {
	what := "containerd is not installed as a service of its own"
	if was != nil {
		what = fmt.Sprintf("containerd %s is too old: CRI v1 came with 1.6", was)
	} else if err := refuseOther(ctx, node.Proc, containerd.DefaultAddress); err != nil {
		return nil, err
	}
	if i.h.Spec.ContainerdArchive != "" {
		n, err := planArchive(ctx, i, i.h.Spec.ContainerdArchive, was)
		if err != nil {
			return nil, node.Refuse("check the archive on the node, or go without --containerd-archive", "%s, and the archive cannot be used: %v", what, err)
		}
		return n, complete(ctx, i, n, was)
	}
	n, reasons, err := planPackages(ctx, i, was)
	if err != nil {
		return nil, err
	}
	if n == nil && was == nil {
		var reason string
		n, reason = planDocker(ctx, i)
		reasons = append(reasons, reason)
	}
	if n == nil && i.listsUnknown != "" {
		return nil, node.WithHint(fmt.Errorf("%s, and %w: %s", what, errNotKnown, strings.Join(append([]string{i.listsUnknown}, reasons...), "; ")),
			"fetch the package lists on the node, as apt-get update does, and plan again; or "+waysToContainerd)
	}
	if n == nil {
		return nil, node.Refuse(waysToContainerd, "%s, and nothing was found that could be installed safely: %s", what, strings.Join(reasons, "; "))
	}
	return n, complete(ctx, i, n, was)
}

// refuseOther refuses a containerd that listens at the usual address and is not the one of containerd.service.
func refuseOther(ctx context.Context, proc, address string) error {
	pid, err := listenerOf(ctx, address)
	if err != nil {
		return nil //nolint:nilerr // nobody listens there
	}
	who := fmt.Sprintf("process %d", pid)
	if process, err := host.ReadProcess(proc, pid); err == nil && len(process.Args) > 0 {
		who += " (" + strings.Join(process.Args, " ") + ")"
	}
	return node.Refuse("have systemd run it as "+node.ContainerdUnit, "a containerd that is not %s listens at %s: %s", node.ContainerdUnit, address, who)
}

// complete fills in what all ways have in common.
func complete(ctx context.Context, i *inspection, n *facts.Installation, was *version.Version) error {
	if was != nil {
		n.Was = was.String()
	}
	p, err := i.h.Systemd.Show(ctx, node.DockerUnit, "LimitNOFILE", "LimitNOFILESoft")
	if err != nil {
		return err
	}
	n.NoFile = nofile(p["LimitNOFILESoft"], p["LimitNOFILE"])
	if n.Dir == "" {
		return nil
	}
	if i.daemon != nil {
		n.Label = bundle.LabelOf(i.daemon.Exe)
	}
	if was == nil {
		return nil
	}
	p, err = i.h.Systemd.Show(ctx, node.ContainerdUnit, "MainPID")
	if err != nil {
		return err
	}
	pid, _ := strconv.Atoi(p["MainPID"])
	process, err := host.ReadProcess(node.Proc, pid)
	if err != nil {
		return node.Refuse("start "+node.ContainerdUnit, "how containerd is started cannot be seen while it does not run: %v", err)
	}
	n.Args = process.Args[1:]
	return nil
}

// nofile is a LimitNOFILE as Docker's service has it, from which its pods had theirs. systemd shows infinity so or as a number; before version
// 228 it knows one limit for both.
func nofile(soft, hard string) string {
	for _, limit := range []*string{&soft, &hard} {
		if *limit == "18446744073709551615" {
			*limit = "infinity"
		}
	}
	switch {
	case hard == "":
		return "infinity"
	case soft == "" || soft == hard:
		return hard
	}
	return soft + ":" + hard
}

// packageNames are what containerd is called: Docker's repositories, where an administrator has set them up, have more versions.
var packageNames = []string{"containerd.io", "containerd"}

// errNotKnown is a plan's, which may not fetch what a switch would.
var errNotKnown = errors.New("whether a package that would do can be installed is not known")

// listsOf says how old what is known of a manager's repositories is.
func listsOf(m packages.Manager, now time.Time) string {
	from := m.ListsFrom()
	if from.IsZero() {
		return m.Name() + "'s package lists, which were never fetched on this node"
	}
	days := int(now.Sub(from).Hours() / 24)
	return fmt.Sprintf("%s's package lists of %s (%d days old)", m.Name(), from.UTC().Format(time.DateOnly), max(0, days))
}

// maxSimulated bounds the versions of a package that are tried.
const maxSimulated = 3

// planPackages finds the first package that fits the kubelet and can be installed without harm to what runs.
func planPackages(ctx context.Context, i *inspection, was *version.Version) (*facts.Installation, []string, error) {
	m := node.PackageManager(i.h, i.report)
	if m == nil {
		return nil, []string{"the host has no package manager that is known"}, nil
	}
	names := packageNames
	if was != nil {
		owner, err := m.Owner(ctx, i.ContainerdBinary)
		if err != nil {
			return nil, nil, err
		}
		if owner == "" {
			return nil, []string{i.ContainerdBinary + " belongs to no package"}, nil
		}
		names = []string{owner}
	} else if stray, err := strayProgram(ctx, m, programPaths()); err != nil || stray != "" {
		return nil, []string{stray + " is there and belongs to no package: one would overwrite it under Docker"}, err
	}
	var reasons []string
	for _, name := range names {
		versions, err := m.Versions(ctx, name)
		if i.h.ReadOnly && (err != nil || len(versions) == 0) {
			i.listsUnknown = fmt.Sprintf("a plan goes by %s", listsOf(m, time.Now()))
		}
		if err != nil {
			reasons = append(reasons, err.Error())
			continue
		}
		fitting := fittingVersions(i.setup.Version, was, versions)
		if len(fitting) == 0 {
			reasons = append(reasons, fmt.Sprintf("%s's repositories have no %s that would do", m.Name(), name))
		}
		for _, version := range fitting[:min(len(fitting), maxSimulated)] {
			t, err := simulate(ctx, m, name, version)
			if err == nil {
				i.listsUsed = listsOf(m, time.Now())
				return &facts.Installation{
					From: facts.FromPackages, Manager: m.Name(), Package: name, Transaction: t,
					Version: packages.Upstream(version), Binary: packagedBinary(i.ContainerdBinary),
				}, nil, nil
			}
			reasons = append(reasons, fmt.Sprintf("%s install %s %s: %v", m.Name(), name, version, err))
		}
	}
	return nil, reasons, nil
}

// packagedBinary is where every distribution has it.
func packagedBinary(found string) string {
	if found != "" {
		return found
	}
	return "/usr/bin/containerd"
}

// simulate returns what the manager would do, if that leaves alone what runs and can be undone.
func simulate(ctx context.Context, m packages.Manager, name, version string) (packages.Transaction, error) {
	t, err := m.Simulate(ctx, name, version)
	if err != nil {
		return t, err
	}
	if err := t.Judge(name); err != nil {
		return t, err
	}
	for _, p := range t.Upgrade {
		versions, err := m.Versions(ctx, p.Name)
		if err != nil {
			return t, err
		}
		if !slices.Contains(versions, p.Old) {
			return t, fmt.Errorf("there would be no way back: the repositories do not have %s %s any more", p.Name, p.Old)
		}
	}
	return t, nil
}

// fittingVersions are those that the kubelet can work with. Under a running Docker the major version stays, also with an archive: containerd
// 2 dropped what Docker up to 19.03 runs containers with, and nobody promises a way back across it.
func fittingVersions(k version.Version, was *version.Version, versions []string) []string {
	var fitting []string
	for _, candidate := range versions {
		v, ok := version.Parse(packages.Upstream(candidate))
		if ok && facts.Fits(k, v) == nil && (was == nil || v.Major == was.Major) {
			fitting = append(fitting, candidate)
		}
	}
	return fitting
}

// programPaths are where packages put their programs.
func programPaths() []string {
	paths := []string{"/usr/sbin/runc"}
	for _, name := range bundle.Names {
		paths = append(paths, "/usr/bin/"+name)
	}
	return paths
}

// strayProgram returns a program at one of the paths that no package has. A package's would take its place, and be removed with the package.
func strayProgram(ctx context.Context, m packages.Manager, paths []string) (string, error) {
	for _, path := range paths {
		if host.Absent(path) {
			continue
		}
		if owner, err := m.Owner(ctx, path); err != nil || owner == "" {
			return path, err
		}
	}
	return "", nil
}

// planArchive looks into an archive on the host and has its containerd say what it is.
func planArchive(ctx context.Context, i *inspection, archive string, was *version.Version) (*facts.Installation, error) {
	content, version, err := readArchive(ctx, i, archive)
	if err != nil {
		return nil, err
	}
	if err := facts.Fits(i.setup.Version, version); err != nil {
		return nil, err
	}
	if was != nil && was.Major != version.Major {
		return nil, fmt.Errorf("it holds containerd %s, and under Docker the major version has to stay %d", version, was.Major)
	}
	n := &facts.Installation{From: facts.FromArchive, Archive: archive, SHA256: content.SHA256, Version: version.String()}
	if content.Sizes["runc"] == 0 {
		runc, err := lookNearDocker(i, "runc")
		if err != nil {
			return nil, fmt.Errorf("it does not hold runc, and the host has none: %w", err)
		}
		n.Path = []string{filepath.Dir(runc)}
	}
	return n, placeIn(n, installRoot, content.Size())
}

// placeIn sets where the programs go, if there is room.
func placeIn(n *facts.Installation, root string, need int64) error {
	n.Dir = filepath.Join(root, "containerd-"+n.Version)
	n.Binary = filepath.Join(n.Dir, "bin/containerd")
	var fs unix.Statfs_t
	if err := unix.Statfs(host.Existing(n.Dir), &fs); err != nil {
		return fmt.Errorf("look for space in %s: %w", n.Dir, err)
	}
	const reserve = 64 << 20
	if free := int64(fs.Bavail) * fs.Bsize; free < need+reserve { //nolint:gosec // no file system is that large
		return fmt.Errorf("it needs %d MiB in %s, and %d MiB are free", (need+reserve)>>20, root, free>>20)
	}
	return nil
}

// readArchive reads an archive, once, and runs its containerd from a file beside the agent, from where programs are known to run.
func readArchive(ctx context.Context, i *inspection, archive string) (bundle.Archive, version.Version, error) {
	fail := func(err error) (bundle.Archive, version.Version, error) {
		return bundle.Archive{}, version.Version{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return fail(err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(self), ".containerd-")
	if err != nil {
		return fail(fmt.Errorf("look at the archive: %w", err))
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary := filepath.Join(dir, "containerd")
	content, err := bundle.Read(archive, bundle.Want{SHA256: i.h.Spec.ContainerdArchiveSHA256, Containerd: binary})
	if err != nil {
		return fail(err)
	}
	version, err := containerd.Version(ctx, binary, i.h.Runner.Run)
	return content, version, err
}

// lookNearDocker finds a program beside Docker's daemon or in the usual directories.
func lookNearDocker(i *inspection, name string) (string, error) {
	if i.daemon != nil {
		if path := filepath.Join(filepath.Dir(i.daemon.Exe), name); !host.Absent(path) {
			return path, nil
		}
	}
	return host.LookPath(name)
}

// planDocker takes the programs of the containerd that a Docker of static binaries brought. They are copied: who removes such a Docker
// later removes its files. The reason tells why it cannot be done.
func planDocker(ctx context.Context, i *inspection) (n *facts.Installation, reason string) {
	n = &facts.Installation{From: facts.FromDocker}
	var need int64
	for _, name := range bundle.Names {
		path, err := lookNearDocker(i, name)
		if err != nil {
			if name == "containerd" || name == bundle.Shim || name == "runc" {
				return nil, "Docker has no containerd of its own that could be copied: " + err.Error()
			}
			continue
		}
		if info, err := os.Stat(path); err == nil {
			need += info.Size()
		}
		n.Programs = append(n.Programs, path)
	}
	version, err := containerd.Version(ctx, n.Programs[0], i.h.Runner.Run)
	if err == nil {
		err = facts.Fits(i.setup.Version, version)
	}
	if err == nil {
		n.Version = version.String()
		err = placeIn(n, installRoot, need)
	}
	if err != nil {
		return nil, fmt.Sprintf("Docker's own containerd, %s, cannot be copied: %v", n.Programs[0], err)
	}
	return n, ""
}
