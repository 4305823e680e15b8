package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
)

const (
	containerdConfigID = "containerd-config"
)

// containerdProcess is how the service runs containerd.
type containerdProcess struct {
	binary, config string
	// root and address are those of its flags, which count whatever the config says.
	root, address string
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

// containerdConfig writes containerd's config, after a throw-away daemon has taken it, and what else is carried over from Docker.
func containerdConfig(h *node.Host) engine.Step {
	return step[[]host.Change]{
		id: containerdConfigID, title: "Configure containerd",
		record: func(ctx context.Context, _ engine.Report) ([]host.Change, error) {
			files, err := containerdFiles(ctx, h)
			if err != nil {
				return nil, err
			}
			changes, err := changesOf(h, files)
			if err == nil && len(changes) == 0 {
				err = engine.Skip(files[len(files)-1].path + " is as it should be")
			}
			return changes, err
		},
		files: func(ctx context.Context) ([]plannedFile, error) { return containerdFiles(ctx, h) },
		apply: func(ctx context.Context, changes []host.Change, report engine.Report) error {
			return applyContainerdConfig(ctx, h, changes, report)
		},
		revertible: func(_ context.Context, changes []host.Change) error { return undoable(h, changes) },
		revert: func(ctx context.Context, changes []host.Change, report engine.Report) error {
			if err := undoFiles(h, changes, report); err != nil {
				return err
			}
			if err := h.Systemd.DaemonReload(ctx); err != nil {
				return err
			}
			unit, err := h.Systemd.State(ctx, node.ContainerdUnit)
			if err != nil || !unit.Running() {
				return err
			}
			return restartContainerdBack(ctx, h, report)
		},
	}
}

// applyContainerdConfig writes the config last, after a throw-away daemon has taken it.
func applyContainerdConfig(ctx context.Context, h *node.Host, changes []host.Change, report engine.Report) error {
	found, err := facts.Of(h)
	if err != nil {
		return err
	}
	// The config comes last; without a change it is the one on the host.
	at := found.ContainerdConfig
	if last := changes[len(changes)-1]; !isCarried(last.Path) {
		at = last.NewCopy
	}
	config, err := os.ReadFile(at)
	if err != nil {
		return err
	}
	// What the config names has to be there when it is tried; nobody else reads it yet.
	apply := func(carried bool) error {
		for _, change := range changes {
			if isCarried(change.Path) != carried {
				continue
			}
			if err := backups(h).Apply(change); err != nil {
				return err
			}
		}
		return nil
	}
	if err := apply(true); err != nil {
		return err
	}
	report.Progress("try it on a throw-away containerd", 0, 0, "")
	if err := containerd.Try(ctx, found.ContainerdBinary, found.ContainerdConfig, config); err != nil {
		return err
	}
	if err := apply(false); err != nil {
		return err
	}
	report.Progress(pathsOf(changes), 0, 0, "")
	return h.Systemd.DaemonReload(ctx) // one of them may be a drop-in
}

// containerdFiles are containerd's config, which comes last, and what lies beside it.
func containerdFiles(ctx context.Context, h *node.Host) ([]plannedFile, error) {
	found, err := facts.Of(h)
	if err != nil {
		return nil, err
	}
	config, err := containerdToBe(ctx, h, found)
	if err != nil {
		return nil, err
	}
	carried, _, err := carryFiles(ctx, h, found, config)
	if err != nil {
		return nil, err
	}
	var files []plannedFile
	for _, file := range carried {
		planned, err := toBe(file.Path, file.Data, file.Mode)
		if err != nil {
			return nil, err
		}
		files = append(files, planned)
	}
	return append(files, plannedFile{path: found.ContainerdConfig, old: config.old, new: config.text, mode: configMode(found)}), nil
}

// newConfig is containerd's config as it was and as it will be.
type newConfig struct {
	old, text []byte
	settings  containerd.Settings
	limits    []translate.Limit
	// layout is that with the new one.
	layout containerd.Layout
}

// containerdToBe makes containerd's new config. What the very containerd that will run makes of it, with what it imports, has to be what was
// wanted of it.
func containerdToBe(ctx context.Context, h *node.Host, found facts.Found) (newConfig, error) {
	old, err := host.ReadFile(found.ContainerdConfig)
	if err != nil {
		return newConfig{}, err
	}
	imported, err := containerd.ReadImports(found.ContainerdConfig, old)
	if err != nil {
		return newConfig{}, err
	}
	c := newConfig{old: old}
	if c.settings, err = containerdSettings(found, old, imported); err != nil {
		return c, err
	}
	carried, err := limitsToCarry(ctx, h, found)
	if err != nil {
		return c, err
	}
	if c.limits = carried.limits; len(c.limits) > 0 {
		c.settings.BaseSpec = baseSpecFile
	}
	c.text, err = containerd.Render(old, c.settings)
	if errors.As(err, new(*containerd.ImportError)) {
		return c, err
	}
	if err != nil {
		return c, fmt.Errorf("%s: %w", found.ContainerdConfig, err)
	}
	effective, err := effectiveContainerd(ctx, h, found, c.text)
	if err != nil {
		return c, err
	}
	c.layout = effective.Layout
	return c, effective.Check(c.settings)
}

// effectiveContainerd is what the containerd that will run makes of a config; where it is yet to be installed, a guess.
func effectiveContainerd(ctx context.Context, h *node.Host, found facts.Found, config []byte) (effective containerd.Effective, err error) {
	if willRun(ctx, h, found) {
		err = host.Within(ctx, 30*time.Second, func(ctx context.Context) error {
			effective, err = containerd.ReadEffective(ctx, found.ContainerdBinary, found.ContainerdConfig, config, h.Runner.Run)
			return err
		})
	} else {
		err = containerd.ErrUnknownVersion
	}
	if errors.Is(err, containerd.ErrUnknownVersion) {
		effective, err = containerd.GuessEffective(found.ContainerdConfig, config)
	}
	effective.Root = cmp.Or(found.ContainerdRoot, effective.Root)
	return effective, err
}

// willRun tells that the program on the host is the one that the node will run.
func willRun(ctx context.Context, h *node.Host, found facts.Found) bool {
	if found.ContainerdBinary == "" || found.Install == nil {
		return found.ContainerdBinary != ""
	}
	is, err := containerd.Version(ctx, found.ContainerdBinary, h.Runner.Run)
	release, releaseErr := containerdRelease(found)
	return err == nil && releaseErr == nil && is.Major == release.Major && is.Minor == release.Minor
}

func containerdRelease(found facts.Found) (containerd.BinaryVersion, error) {
	return containerd.ParseVersion("containerd - " + found.Facts.ContainerdVersion)
}

func containerdSettings(found facts.Found, old []byte, imported []containerd.Imported) (containerd.Settings, error) {
	settings := containerd.Settings{
		CgroupDriver:        found.Facts.CgroupDriver,
		SandboxImage:        found.Facts.SandboxImage,
		CNIBinDirs:          found.CNIBinDir,
		CNIConfDir:          found.CNIConfDir,
		RestrictOOMScoreAdj: found.RestrictOOM,
		Address:             found.ContainerdAddress,
		Imported:            imported,
	}
	var err error
	if settings.Release, err = containerdRelease(found); err != nil {
		return settings, err
	}
	if err := carrySettings(&settings, found, old); err != nil {
		return settings, fmt.Errorf("%s: %w", found.ContainerdConfig, err)
	}
	if found.SandboxAuthFile != "" {
		auth, err := registryAuth(found.SandboxAuthFile, found.Facts.SandboxImage)
		if err != nil {
			return settings, fmt.Errorf("read credentials for the sandbox image: %w", err)
		}
		settings.SandboxAuth = auth
	}
	return settings, nil
}

// configMode is for root's eyes alone where the config holds a password.
func configMode(found facts.Found) uint32 {
	if found.SandboxAuthFile != "" {
		return 0o600
	}
	return 0o644
}

// containerdService enables containerd, has it read its config, and waits until CRI is ready.
func containerdService(h *node.Host) engine.Step {
	return step[host.UnitState]{
		id: "containerd-service", title: "Start containerd with CRI",
		record: func(ctx context.Context, _ engine.Report) (host.UnitState, error) {
			return h.Systemd.State(ctx, node.ContainerdUnit)
		},
		files: func(ctx context.Context) ([]plannedFile, error) {
			was, err := h.Systemd.State(ctx, node.ContainerdUnit)
			if err != nil {
				return nil, err
			}
			links, err := linksToMake(ctx, h, was)
			return plannedLinks(links, false), err
		},
		apply: func(ctx context.Context, was host.UnitState, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			if found.Install.IsNew() {
				if err := h.Systemd.Unhold(ctx, was); err != nil {
					return err
				}
			}
			if links, err := linksToMake(ctx, h, was); err != nil {
				return err
			} else if len(links) > 0 {
				if err := errors.Join(h.Systemd.MakeLinks(links), h.Systemd.DaemonReload(ctx)); err != nil {
					return err
				}
			}
			if !was.Running() {
				if err := host.ClearSocket(found.ContainerdAddress); err != nil {
					return err
				}
			}
			// Also where the config was right already: nobody knows whether the daemon has read it.
			if err := restartContainerd(ctx, h, report); err != nil {
				return err
			}
			report.Progress("wait for CRI", 0, 0, "")
			check, err := waitForCRI(ctx, h, found, cri.Report.Ready)
			if err != nil {
				return err
			}
			removeRemains(ctx, h, found, report)
			report.Progress("containerd "+check.RuntimeVersion, 0, 0, "")
			return nil
		},
		revert: func(ctx context.Context, was host.UnitState, _ engine.Report) error {
			found, err := facts.Of(h)
			if err == nil && found.Install.IsNew() {
				err = h.Systemd.Hold(ctx, "containerd is being removed.", node.ContainerdUnit)
			}
			if err != nil {
				return err
			}
			return h.Systemd.Restore(ctx, was)
		},
	}
}

// linksToMake are the links that containerd needs to come up at boot without Docker: its packages' docker.service wants it, but is held.
func linksToMake(ctx context.Context, h *node.Host, was host.UnitState) (map[string]string, error) {
	p, err := h.Systemd.Show(ctx, node.ContainerdUnit, "WantedBy", "RequiredBy")
	if err != nil {
		return nil, err
	}
	for by := range strings.FieldsSeq(p["WantedBy"] + " " + p["RequiredBy"]) {
		// What systemctl enable --runtime makes is gone after the next boot.
		if (by == kubelet.Unit || strings.HasSuffix(by, ".target")) && was.File != "enabled-runtime" {
			return nil, nil
		}
	}
	return h.Systemd.BootLinks(ctx, node.ContainerdUnit)
}

// removeRemains removes what containerd has of pods that a kubelet ran on it before, as in a switch that was rolled back. A kubelet goes on
// counting a pod's containers from those, and comes to numbers that Docker has used since: their logs' names are links into Docker's
// folder, which containerd 1.6 writes through and 2.x refuses to open ("too many levels of symbolic links"). Without them it goes on from the logs.
func removeRemains(ctx context.Context, h *node.Host, found facts.Found, report engine.Report) {
	err := host.Within(ctx, time.Minute, func(ctx context.Context) error {
		return cri.With(ctx, found.Facts.NewEndpoint, func(c *cri.Client) error {
			count, err := c.RemoveStopped(ctx)
			if err == nil && count > 0 {
				report.Info(fmt.Sprintf("removed from containerd what was left of %d stopped pods", count))
			}
			return err
		})
	})
	if err != nil {
		report.Info(fmt.Sprintf("what containerd has of stopped pods stays: %v", err))
	}
}

// runtimeReady is for a moment in which the CNI's own pods are down: some remove its configuration when they end.
func runtimeReady(check cri.Report) bool { return check.RuntimeReady }

// waitForCRI waits until the new runtime is ready, and checks the cgroup driver where the runtime tells it.
func waitForCRI(ctx context.Context, h *node.Host, found facts.Found, ready func(cri.Report) bool) (cri.Report, error) {
	var check cri.Report
	err := host.Within(ctx, time.Minute, func(ctx context.Context) error {
		return cri.With(ctx, found.Facts.NewEndpoint, func(c *cri.Client) error {
			return host.Poll(ctx, 250*time.Millisecond, func(ctx context.Context) (err error) {
				if check, err = c.Check(ctx); err != nil {
					return err
				}
				if !ready(check) {
					return fmt.Errorf("containerd is not ready: %s", check.Message)
				}
				return nil
			})
		})
	})
	if err != nil {
		return check, &host.UnitError{Unit: node.ContainerdUnit, Err: err, Log: h.Systemd.Log(ctx, node.ContainerdUnit)}
	}
	if check.CgroupDriver != "" && check.CgroupDriver != found.Facts.CgroupDriver {
		return check, fmt.Errorf("containerd says that its cgroup driver is %s, the kubelet's is %s", check.CgroupDriver, found.Facts.CgroupDriver)
	}
	return check, nil
}
