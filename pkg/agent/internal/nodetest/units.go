// Package nodetest has stand-ins for what a node's host runs, for tests that a real one cannot serve: a systemd that holds units, a Docker
// whose containers outlive their signals, a CRI that hangs, a /proc. What the real daemons do is tested with agenttest.
package nodetest

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// Units is a systemd that skips the start of a unit that is held.
type Units struct {
	Systemd host.Systemd
	Active  map[string]bool
}

func (u *Units) link(unit string) string {
	return filepath.Join(u.Systemd.Dir, "multi-user.target.wants", unit)
}

// Enabled reports whether a link enables the unit.
func (u *Units) Enabled(unit string) bool { return !host.Absent(u.link(unit)) }

// Held reports whether the unit is held.
func (u *Units) Held(unit string) bool { return !host.Absent(u.Systemd.HoldPath(unit)) }

// Run is systemctl.
func (u *Units) Run(_ context.Context, _ string, args ...string) (string, error) {
	named := args[slices.Index(args, "--")+1:]
	unit := args[len(args)-1]
	_, exists := u.Active[unit]
	switch args[0] {
	case "show":
		if !exists {
			return "LoadState=not-found\nUnitFileState=\nActiveState=inactive\n", nil
		}
		file, active := "disabled", "inactive"
		if u.Enabled(unit) {
			file = "enabled"
		}
		if u.Active[unit] {
			active = "active"
		}
		return "LoadState=loaded\nUnitFileState=" + file + "\nActiveState=" + active + "\n", nil
	case "start":
		if !exists {
			return "", errors.New("not found")
		}
		u.Active[unit] = !u.Held(unit)
	case "stop":
		for _, unit := range named {
			u.Active[unit] = false
		}
	}
	return "", nil
}

// NewUnits are units that run and are enabled.
func NewUnits(t *testing.T, names ...string) *Units {
	t.Helper()
	u := &Units{Active: map[string]bool{}}
	u.Systemd = host.Systemd{Run: u, Dir: t.TempDir()}
	for _, name := range names {
		u.Active[name] = true
		if err := u.Systemd.MakeLinks(map[string]string{u.link(name): "/lib/systemd/system/" + name}); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// Says is a systemctl that shows a text for each unit, its last argument.
type Says map[string]string

// Run is systemctl.
func (u Says) Run(_ context.Context, _ string, args ...string) (string, error) {
	return u[args[len(args)-1]], nil
}

// Answers is a systemctl that says the same to all.
type Answers string

// Run is any program.
func (a Answers) Run(context.Context, string, ...string) (string, error) { return string(a), nil }
