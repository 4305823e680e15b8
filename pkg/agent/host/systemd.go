package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Systemd drives the host's systemd through systemctl. A call that gets no answer is given up after callTimeout, one that waits for
// a unit after jobTimeout, so that the caller can try again or undo.
type Systemd struct {
	Run Runner
	// Dir is where units, links and drop-ins of the administrator's lie; empty means /etc/systemd/system.
	Dir string
}

const (
	callTimeout = time.Minute
	// jobTimeout is longer than the 90 s that systemd gives a unit to stop, twice: a signal to end, then SIGKILL.
	jobTimeout = 4 * time.Minute
)

// UnitState is how a unit stood: a step's memo.
type UnitState struct {
	Name string `json:"name"`
	// Load is LoadState: "loaded", "not-found", "masked".
	Load string `json:"load"`
	// File is UnitFileState: "enabled", "disabled", "static", "masked", …
	File string `json:"file"`
	// Active is ActiveState: "active", "inactive", "failed", "activating", …
	Active string `json:"active"`
	// Links are the links by which other units want or require it, with where they point.
	Links map[string]string `json:"links,omitempty"`
	// Owners are owner and group of the links that are not root's.
	Owners map[string][2]int `json:"owners,omitempty"`
	// HadDropIns reports that the unit's folder of drop-ins was there: Unhold leaves it, even when it is empty.
	HadDropIns bool `json:"hadDropIns,omitempty"`
}

// Exists reports whether systemd knows the unit.
func (u UnitState) Exists() bool { return u.Load == "loaded" }

// Running reports whether the unit is up or on its way.
func (u UnitState) Running() bool {
	return u.Active == "active" || u.Active == "activating" || u.Active == "reloading"
}

// State reads a unit's state; an unknown unit is not an error.
func (s Systemd) State(ctx context.Context, unit string) (UnitState, error) {
	p, err := s.Show(ctx, unit, "LoadState", "UnitFileState", "ActiveState")
	if err != nil {
		return UnitState{}, err
	}
	links, owners, err := linksOf(s, unit)
	return UnitState{
		Name: unit, Load: p["LoadState"], File: p["UnitFileState"], Active: p["ActiveState"],
		Links: links, Owners: owners, HadDropIns: !Absent(filepath.Dir(s.HoldPath(unit))),
	}, err
}

// Show reads properties of a unit.
func (s Systemd) Show(ctx context.Context, unit string, properties ...string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out, err := s.Run.Run(ctx, "systemctl", "show", "--no-pager", "--property="+strings.Join(properties, ","), "--", unit)
	if err != nil {
		return nil, fmt.Errorf("show unit %s: %w", unit, err)
	}
	values := map[string]string{}
	for line := range strings.SplitSeq(out, "\n") {
		if key, value, ok := strings.Cut(line, "="); ok {
			values[key] = value
		}
	}
	return values, nil
}

func systemctl(ctx context.Context, s Systemd, verb, unit string, flags ...string) error {
	var units []string
	if unit != "" {
		units = []string{unit}
	}
	return systemctlAll(ctx, s, verb, units, flags...)
}

func systemctlAll(ctx context.Context, s Systemd, verb string, units []string, flags ...string) error {
	timeout := callTimeout
	if verb == "start" || verb == "stop" || verb == "restart" {
		timeout = jobTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	args := append([]string{verb}, flags...)
	if len(units) > 0 {
		args = append(append(args, "--"), units...)
	}
	if _, err := s.Run.Run(ctx, "systemctl", args...); err != nil {
		return fmt.Errorf("%s unit %s: %w", verb, strings.Join(units, ", "), err)
	}
	return nil
}

// Start starts a unit and waits for it. What the unit logged is in the error.
func (s Systemd) Start(ctx context.Context, unit string) error { return runJob(ctx, s, "start", unit) }

// StartNoWait queues the start of a unit.
func StartNoWait(ctx context.Context, s Systemd, unit string) error {
	return systemctl(ctx, s, "start", unit, "--no-block")
}

// Restart restarts a unit and waits for it.
func (s Systemd) Restart(ctx context.Context, unit string) error {
	return runJob(ctx, s, "restart", unit)
}

// runJob starts a unit that may have used up its starts, with us or without.
func runJob(ctx context.Context, s Systemd, verb, unit string) error {
	_ = systemctl(ctx, s, "reset-failed", unit)
	err := systemctl(ctx, s, verb, unit)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return &UnitError{Unit: unit, Err: err, Log: s.Log(ctx, unit)}
}

// Stop stops units, at once and in the order that they ask for, and waits for them; a unit that is not up is fine.
func (s Systemd) Stop(ctx context.Context, units ...string) error {
	return systemctlAll(ctx, s, "stop", units)
}

// Kill sends SIGKILL to a unit's main process alone, which also ends one that was stopped. What else runs in its cgroup lives on, such
// as containerd's shims.
func (s Systemd) Kill(ctx context.Context, unit string) error {
	return systemctl(ctx, s, "kill", unit, "--signal=KILL", "--kill-who=main")
}

// Stale reports whether systemd would start a unit in another way if it read its files again. In doubt it does.
func (s Systemd) Stale(ctx context.Context, unit string) (bool, error) {
	p, err := s.Show(ctx, unit, "LoadState", "NeedDaemonReload")
	return p["LoadState"] != "loaded" || p["NeedDaemonReload"] != "no", err
}

func unitDir(s Systemd) string {
	if s.Dir != "" {
		return s.Dir
	}
	return filepath.Dir(UnitPath)
}

// HoldPath is the drop-in by which Hold keeps a unit down.
func (s Systemd) HoldPath(unit string) string {
	return filepath.Join(unitDir(s), unit+".d", HoldName)
}

// HoldFile is that drop-in, and what it holds.
func (s Systemd) HoldFile(unit, why string) (path string, text []byte) {
	path = s.HoldPath(unit)
	return path, []byte("# Written by kubectl-runtime: " + why + "\n[Unit]\nConditionPathExists=!" + path + "\n")
}

// Hold keeps units from being started by anyone: at boot, by a socket, by a unit that wants or requires them, by a person. A unit
// that is only disabled comes up with whatever wants it: kubespray's kubelet.service has Wants=docker.socket. Units that run go
// on. The drop-in's condition names the drop-in itself, so that to remove it is enough to free the unit; why is its first line.
func (s Systemd) Hold(ctx context.Context, why string, units ...string) error {
	for _, unit := range units {
		path, text := s.HoldFile(unit, why)
		if err := Replace(path, text, 0o644); err != nil {
			return err
		}
	}
	return s.DaemonReload(ctx)
}

// Unhold lets units be started again. They are as they were recorded before Hold: a folder that Hold made goes, if it is empty.
func (s Systemd) Unhold(ctx context.Context, units ...UnitState) error {
	for _, unit := range units {
		path := s.HoldPath(unit.Name)
		if err := Remove(path); err != nil {
			return err
		}
		if !unit.HadDropIns {
			RemoveDir(filepath.Dir(path))
		}
	}
	return s.DaemonReload(ctx)
}

// DaemonReload has systemd read unit files again.
func (s Systemd) DaemonReload(ctx context.Context) error {
	return systemctl(ctx, s, "daemon-reload", "")
}

// Restore brings a unit to the state that was recorded: enabled or disabled, up or down.
func (s Systemd) Restore(ctx context.Context, was UnitState) error {
	if !was.Exists() {
		return nil
	}
	if err := s.RestoreLinks(was); err != nil {
		return err
	}
	now, err := s.State(ctx, was.Name)
	if err == nil && was.File == "enabled" && now.File != "enabled" {
		// An earlier agent, which had systemctl disable the unit, recorded no links.
		err = errors.Join(systemctl(ctx, s, "enable", was.Name, "--quiet"), s.RestoreLinks(was))
	}
	switch {
	case err != nil:
		return err
	case was.Running() && now.Active != "active":
		return s.Start(ctx, was.Name)
	case !was.Running() && now.Running():
		return s.Stop(ctx, was.Name)
	}
	return nil
}

// Stopping reports whether the host shuts down or reboots.
func (s Systemd) Stopping(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	// Exits non-zero for every state but "running".
	out, _ := s.Run.Run(ctx, "systemctl", "is-system-running")
	return strings.TrimSpace(out) == "stopping"
}

// Log returns the last lines that a unit logged, also if ctx has ended.
func (s Systemd) Log(ctx context.Context, unit string) string {
	ctx, cancel := Outlive(ctx, 5*time.Second)
	defer cancel()
	out, err := s.Run.Run(ctx, "journalctl", "--no-pager", "--quiet", "--lines=30", "--output=cat", "--unit="+unit)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(out)
}

// UnitError is a unit that did not start or stop as requested, with what it logged.
type UnitError struct {
	Unit string
	Err  error
	Log  string
}

func (e *UnitError) Error() string { return e.Err.Error() }
func (e *UnitError) Unwrap() error { return e.Err }

// Detail returns the unit's last log lines.
func (e *UnitError) Detail() string {
	if e.Log != "" {
		return e.Log
	}
	var command *CommandError
	if errors.As(e.Err, &command) {
		return command.Output
	}
	return ""
}

// Hint says where there is more.
func (e *UnitError) Hint() string { return "on the node: journalctl -u " + e.Unit }

// Booted reports whether systemd is PID 1 of the host whose root is at root (sd_booted(3)).
func Booted(root string) bool {
	info, err := os.Lstat(filepath.Join(root, "/run/systemd/system"))
	return err == nil && info.IsDir()
}
