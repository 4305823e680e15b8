package inspect

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var unitsCheck = check{id: protocol.CheckUnits, warning: protocol.CheckDependents, run: checkUnits}

// checkUnits finds dependencies between units that would take the kubelet down with Docker, or Docker with containerd. A kubelet
// that only requires Docker's unit, as in Amazon's images, does no harm: the kubelet is stopped when Docker is, and when it starts
// again, the condition that holds Docker down has the requirement pass (systemd.unit(5), Requires=).
func checkUnits(ctx context.Context, i *inspection) error {
	units, err := node.UnitsToStop(ctx, i.h)
	if err != nil {
		return err
	}
	i.Running = nil
	for _, unit := range units {
		if unit.Running() {
			i.Running = append(i.Running, unit.Name)
		}
	}
	if err := checkDependents(ctx, i, units); err != nil {
		return err
	}
	if err := checkDockerDependencies(ctx, i); err != nil || i.h.Spec.KeepDocker {
		return err
	}
	p, err := i.h.Systemd.Show(ctx, kubelet.Unit, "Requires", "FragmentPath", "DropInPaths")
	if err == nil && slices.Contains(strings.Fields(p["Requires"]), node.DockerUnit) {
		i.warn("%s has Requires=%s: once Docker is uninstalled it would not start; %s", kubelet.Unit, node.DockerUnit, byWants(p))
	}
	return err
}

// checkDockerDependencies finds what would restart Docker together with containerd.
func checkDockerDependencies(ctx context.Context, i *inspection) error {
	kinds := []string{"Requires", "BindsTo", "PartOf", "Requisite", "StopPropagatedFrom"}
	p, err := i.h.Systemd.Show(ctx, node.DockerUnit, append(kinds, "FragmentPath", "DropInPaths")...)
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		if slices.Contains(strings.Fields(p[kind]), node.ContainerdUnit) {
			return node.Refuse(byWants(p), "%s has %s=%s: it would be restarted, with all its containers, when containerd reads its new config",
				node.DockerUnit, kind, node.ContainerdUnit)
		}
	}
	return nil
}

// byWants says how to loosen a dependency, by the properties FragmentPath and DropInPaths of the unit that has it.
func byWants(p map[string]string) string {
	return fmt.Sprintf("replace it by Wants= in %s, and run systemctl daemon-reload", strings.TrimSpace(p["FragmentPath"]+" "+p["DropInPaths"]))
}

// checkDependents finds the units that go down with those that the cutover stops: systemd stops what requires, is bound to or is part of
// a unit with it, and does not start it when the unit comes back (systemd.unit(5)).
func checkDependents(ctx context.Context, i *inspection, units []host.UnitState) error {
	ours := append([]string{kubelet.Unit}, node.NamesOf(units)...)
	for _, unit := range units {
		p, err := i.h.Systemd.Show(ctx, unit.Name, "RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf")
		if err != nil {
			return err
		}
		for _, by := range []string{"BoundBy", "RequisiteOf"} {
			if !slices.Contains(strings.Fields(p[by]), kubelet.Unit) {
				continue
			}
			files, err := i.h.Systemd.Show(ctx, kubelet.Unit, "FragmentPath", "DropInPaths")
			if err != nil {
				return err
			}
			kind := map[string]string{"BoundBy": "BindsTo", "RequisiteOf": "Requisite"}[by]
			return node.Refuse(byWants(files), "%s has %s=%s: it would not run without Docker", kubelet.Unit, kind, unit.Name)
		}
		var others []string
		for _, name := range strings.Fields(strings.Join([]string{p["RequiredBy"], p["RequisiteOf"], p["BoundBy"], p["ConsistsOf"]}, " ")) {
			if slices.Contains(ours, name) || slices.Contains(others, name) {
				continue
			}
			state, err := i.h.Systemd.State(ctx, name)
			if err != nil {
				return err
			}
			if state.Running() {
				others = append(others, name)
			}
		}
		if len(others) > 0 {
			slices.Sort(others)
			i.warn("%s is stopped together with %s, and nothing starts it again, not even a rollback", strings.Join(others, ", "), unit.Name)
		}
	}
	return nil
}
