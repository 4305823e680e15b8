package steps

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/bundle"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/packages"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

// installed is what containerd-install has to know to undo itself, beside what inspect found.
type installed struct {
	// Unit is containerd.service as it was before it was held; the name is empty in journals of agents that did not record it.
	Unit host.UnitState `json:"unit,omitzero"`
	// Changes are the unit of a containerd that no package manager knows.
	Changes []host.Change `json:"changes,omitempty"`
	// Kept are the files of the packages that are replaced. There are none where the manager cannot keep any, and in journals of agents
	// that did not record them.
	Kept []packages.Kept `json:"kept,omitempty"`
	// Purge tells that configuration files which come with packages go with them: there were none.
	Purge bool `json:"purge,omitempty"`
}

// containerdInstall brings a containerd where there is none, or a newer one where it is too old. A new one is held until it is configured:
// a package would start it at once, and Docker, started again in between, would run its containers on it (facts.ApartAddress).
func containerdInstall(h *node.Host) engine.Step {
	return step[installed]{
		id: containerdInstallID, title: "Install containerd",
		record: func(ctx context.Context, report engine.Report) (installed, error) {
			found, err := facts.Of(h)
			if err != nil || found.Install == nil {
				return installed{}, err
			}
			unit, err := h.Systemd.State(ctx, node.ContainerdUnit)
			if err != nil {
				return installed{}, err
			}
			memo, err := recordInstall(ctx, h, *found.Install, report)
			memo.Unit = unit
			return memo, err
		},
		apply: func(ctx context.Context, memo installed, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			n := found.Install
			if n == nil {
				report.Progress("containerd "+found.Facts.ContainerdVersion+" is there", 0, 0, "")
				return nil
			}
			if n.IsNew() {
				if err := h.Systemd.Hold(ctx, "containerd is being set up.", node.ContainerdUnit); err != nil {
					return err
				}
			}
			report.Progress(n.String(), 0, 0, "")
			if err := install(ctx, h, *n, memo, report); err != nil {
				return err
			}
			if err := h.Systemd.DaemonReload(ctx); err != nil {
				return err
			}
			return checkInstalled(ctx, h, found)
		},
		revert: func(ctx context.Context, memo installed, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil || found.Install == nil {
				return err
			}
			return uninstall(ctx, h, *found.Install, memo, report)
		},
		changed: func(memo installed) []string { return pathsOf(memo.Changes) },
		revertible: func(ctx context.Context, memo installed) error {
			found, err := facts.Of(h)
			if err != nil || found.Install == nil {
				return err
			}
			return uninstallable(ctx, h, *found.Install, memo)
		},
	}
}

const containerdInstallID = "containerd-install"

func recordInstall(ctx context.Context, h *node.Host, n facts.Installation, report engine.Report) (installed, error) {
	if n.From == facts.FromPackages {
		m := node.PackageManager(h, report)
		if m == nil {
			return installed{}, errNoManager
		}
		kept, err := m.Keep(ctx, keptPackages(h), n.Transaction.Upgrade)
		return installed{Purge: host.Absent(containerd.DefaultConfigPath), Kept: kept}, err
	}
	file, content := desired.ContainerdUnit(n)
	old, err := host.ReadFile(file)
	if err != nil {
		return installed{}, err
	}
	change, err := backups(h).Plan(file, old, content)
	return installed{Changes: []host.Change{change}}, err
}

func install(ctx context.Context, h *node.Host, n facts.Installation, memo installed, report engine.Report) error {
	switch n.From {
	case facts.FromPackages:
		return installPackages(ctx, h, n, memo, report)
	case facts.FromArchive:
		if err := bundle.Unpack(n.Archive, n.SHA256, n.Dir); err != nil {
			return err
		}
	case facts.FromDocker:
		if err := bundle.Copy(n.Programs, n.Dir); err != nil {
			return err
		}
	}
	if err := bundle.Label(n.Dir, n.Label); err != nil {
		return err
	}
	for _, change := range memo.Changes {
		if err := backups(h).Apply(change); err != nil {
			return err
		}
	}
	return nil
}

func keptPackages(h *node.Host) string { return filepath.Join(h.RunDir, "packages") }

// installPackages looks again at what the manager would do: the host was inspected a moment ago, and an attempt of this step may have died
// half-way, so that less is left to be done.
func installPackages(ctx context.Context, h *node.Host, n facts.Installation, memo installed, report engine.Report) error {
	m := node.PackageManager(h, report)
	if m == nil {
		return errNoManager
	}
	if err := m.Mend(ctx); err != nil {
		return err
	}
	want := slices.Concat(n.Transaction.Install, n.Transaction.Upgrade)
	done, err := allInstalled(ctx, m, want)
	if err != nil || done {
		return err
	}
	if err := stillSafe(ctx, m, n, want); err != nil {
		return fmt.Errorf("install %s by %s: %w", n.Package, m.Name(), err)
	}
	if len(memo.Kept) == 0 {
		_, err = m.Keep(ctx, keptPackages(h), n.Transaction.Upgrade)
	} else {
		err = packages.CheckKept(keptPackages(h), memo.Kept)
	}
	if err != nil {
		return fmt.Errorf("install %s by %s: there would be no way back: %w", n.Package, m.Name(), err)
	}
	if err := m.Install(ctx, want); err != nil {
		return node.WithHint(fmt.Errorf("install %s by %s: %w", n.Transaction, m.Name(), err),
			"see to it that the node reaches its package repositories, or copy upstream's archive to it and use --containerd-archive=PATH")
	}
	return nil
}

// stillSafe refuses what was not planned.
func stillSafe(ctx context.Context, m packages.Manager, n facts.Installation, want []packages.Package) error {
	version := ""
	for _, p := range want {
		if p.Name == n.Package {
			version = p.New
		}
	}
	t, err := m.Simulate(ctx, n.Package, version)
	if err == nil {
		err = t.Judge(n.Package)
	}
	if err != nil {
		return err
	}
	for _, p := range slices.Concat(t.Install, t.Upgrade) {
		if !slices.ContainsFunc(want, func(w packages.Package) bool { return w.Name == p.Name && w.New == p.New }) {
			return fmt.Errorf("it would now install %s %s, too", p.Name, p.New)
		}
	}
	return nil
}

func allInstalled(ctx context.Context, m packages.Manager, want []packages.Package) (bool, error) {
	for _, p := range want {
		version, whole, err := m.Installed(ctx, p.Name)
		if err != nil || !whole || version != p.New {
			return false, err
		}
	}
	return true, nil
}

// checkInstalled makes sure that what is there now is what the later steps count on.
func checkInstalled(ctx context.Context, h *node.Host, found facts.Found) error {
	unit, err := h.Systemd.State(ctx, node.ContainerdUnit)
	if err != nil {
		return err
	}
	if !unit.Exists() {
		return fmt.Errorf("install containerd: there is no %s afterwards (it is %s)", node.ContainerdUnit, unit.Load)
	}
	version, err := containerd.Version(ctx, found.ContainerdBinary, h.Runner.Run)
	if err != nil {
		return err
	}
	kubelet, err := found.Kubelet()
	if err != nil {
		return err
	}
	planned, err := desired.ContainerdRelease(found)
	if err != nil {
		return err
	}
	if version.Major != planned.Major {
		return fmt.Errorf("install containerd: %s is version %s and not %s", found.ContainerdBinary, version, planned)
	}
	return facts.Fits(kubelet.Version, version)
}

// uninstall takes back what install did, whole or half-way.
func uninstall(ctx context.Context, h *node.Host, n facts.Installation, memo installed, report engine.Report) error {
	if n.IsNew() {
		if err := retireContainerd(ctx, h, memo.Unit); err != nil {
			return err
		}
	}
	if n.From == facts.FromPackages {
		if err := uninstallPackages(ctx, h, n, memo, report); err != nil {
			return err
		}
	} else {
		if err := undoFiles(h, memo.Changes, report); err != nil {
			return err
		}
		if err := h.Systemd.DaemonReload(ctx); err != nil {
			return err
		}
	}
	if n.IsNew() {
		was := memo.Unit
		was.Name = node.ContainerdUnit
		if err := h.Systemd.Unhold(ctx, was); err != nil {
			return err
		}
	} else if err := pods.RestartContainerdForUndo(ctx, h, report); err != nil {
		return err
	}
	if n.Dir == "" {
		return nil
	}
	return bundle.Remove(n.Dir)
}

// retireContainerd takes a service down that is about to vanish, and leaves the links to it that were there before it.
func retireContainerd(ctx context.Context, h *node.Host, before host.UnitState) error {
	unit, err := h.Systemd.State(ctx, node.ContainerdUnit)
	if err != nil || !unit.Exists() {
		return err
	}
	before.Name = node.ContainerdUnit
	return errors.Join(h.Systemd.Stop(ctx, node.ContainerdUnit), h.Systemd.RestoreLinks(before))
}

// uninstallable returns why uninstall could not succeed as the host is now.
func uninstallable(ctx context.Context, h *node.Host, n facts.Installation, memo installed) error {
	if n.From != facts.FromPackages {
		return undoable(h, memo.Changes)
	}
	m := node.PackageManager(h, node.Silent{})
	if m == nil {
		return errNoManager
	}
	changed, err := changedPackages(ctx, m, n)
	if err == nil && len(changed) > 0 {
		if err = packages.CheckKept(keptPackages(h), memo.Kept); err == nil {
			err = m.Restorable(ctx, keptPackages(h), changed)
		}
	}
	if err != nil {
		return fmt.Errorf("bring back packages by %s: %w", m.Name(), err)
	}
	return nil
}

// changedPackages are the upgraded packages that are not there, whole, in their old versions.
func changedPackages(ctx context.Context, m packages.Manager, n facts.Installation) ([]packages.Package, error) {
	var changed []packages.Package
	for _, p := range n.Transaction.Upgrade {
		version, whole, err := m.Installed(ctx, p.Name)
		if err != nil {
			return nil, err
		}
		if version != p.Old || !whole {
			changed = append(changed, p)
		}
	}
	return changed, nil
}

// uninstallPackages brings back the versions from before and removes what is new, unless something else has come to need it.
func uninstallPackages(ctx context.Context, h *node.Host, n facts.Installation, memo installed, report engine.Report) error {
	m := node.PackageManager(h, report)
	if m == nil {
		return errNoManager
	}
	if err := m.Mend(ctx); err != nil {
		report.Warn(err.Error()) // to remove such a package, or to replace it, is the cure
	}
	changed, err := changedPackages(ctx, m, n)
	if err != nil {
		return err
	}
	if len(changed) > 0 {
		report.Progress("back to "+changed[0].Name+" "+changed[0].Old, 0, 0, "")
		if err := packages.CheckKept(keptPackages(h), memo.Kept); err != nil {
			return err
		}
		if err := m.Restore(ctx, keptPackages(h), changed); err != nil {
			return fmt.Errorf("bring back packages by %s: %w", m.Name(), err)
		}
	}
	var names []string
	broken := false
	for _, p := range n.Transaction.Install {
		version, whole, err := m.Installed(ctx, p.Name)
		if err != nil {
			return err
		}
		if version != "" {
			names = append(names, p.Name)
			broken = broken || !whole
		}
	}
	if len(names) == 0 {
		return nil
	}
	t, err := m.SimulateRemove(ctx, names)
	if err != nil && !broken { // what is half installed may have to go without a simulation
		return fmt.Errorf("remove packages by %s: %w", m.Name(), err)
	}
	for _, p := range t.Remove {
		if !slices.Contains(names, p.Name) {
			report.Warn(fmt.Sprintf("%s stay: %s was installed since, and needs them", strings.Join(names, ", "), p.Name))
			return nil
		}
	}
	report.Progress("remove "+strings.Join(names, ", "), 0, 0, "")
	if err := m.Remove(ctx, names, memo.Purge); err != nil {
		return fmt.Errorf("remove packages by %s: %w", m.Name(), err)
	}
	return nil
}

// errNoManager is for a host on which a package manager was found when it was inspected.
var errNoManager = errors.New("the host's package manager is not there any more")
