// Package unit is the host unit, kubectl-runtime.service: its files below /var/lib/kubectl-runtime, how it is installed and
// removed, and what it does when systemd starts it. It is the one who runs the engine on the host's steps; pod and
// command line only ask it to.
package unit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Phases are all phases, in the order in which those that were asked for are carried out.
var phases = []protocol.Phase{protocol.PhasePrepare, protocol.PhaseCutover, protocol.PhaseVerify, protocol.PhaseRollback}

// Layout is where things are on the host. Root is "/" but in tests.
type Layout struct{ Root string }

func (l Layout) dir() string      { return filepath.Join(l.Root, host.Dir) }
func (l Layout) current() string  { return filepath.Join(l.dir(), "current") }
func (l Layout) runs() string     { return filepath.Join(l.dir(), "runs") }
func (l Layout) unitPath() string { return filepath.Join(l.Root, host.UnitPath) }

// MakeDir makes the directory, for root alone: backups below it hold credentials. Earlier agents made it readable for all.
func (l Layout) MakeDir() error {
	if err := os.MkdirAll(l.dir(), 0o700); err != nil {
		return err
	}
	return os.Chmod(l.dir(), 0o700) //nolint:gosec // a directory has to be searchable
}

// Hold returns the path of the file that keeps the kubelet from starting.
func (l Layout) Hold() string { return filepath.Join(l.Root, host.HoldFile) }

// RunDir returns the directory of a run.
func (l Layout) RunDir(run string) string { return filepath.Join(l.runs(), run) }

// Current returns the run that the host works on, empty if there never was one.
func (l Layout) Current() (string, error) {
	target, err := os.Readlink(l.current())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the current run: %w", err)
	}
	return filepath.Base(target), nil
}

// Find returns the run that the host works on, also when the link to it was lost: then it is the one with an open phase. It is empty if
// there is nothing to work on.
func (l Layout) Find() (string, error) {
	run, err := l.Current()
	if err != nil || run != "" && !host.Absent(l.RunDir(run)) {
		return run, err
	}
	runs, err := l.Runs()
	if err != nil {
		return "", err
	}
	var found []string
	for _, run := range runs {
		_, records, err := journal.Read(l.RunDir(run))
		if err != nil {
			return "", fmt.Errorf("look for the open run: %w", err)
		}
		if _, open := engine.Open(records); open {
			found = append(found, run)
		}
	}
	switch len(found) {
	case 0:
		return "", nil
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("look for the open run: there are %s; link %s to the directory of the one to resume", strings.Join(found, ", "), l.current())
}

// SetCurrent makes run the one that the host works on.
func (l Layout) SetCurrent(run string) error {
	if now, err := l.Current(); err != nil || now == run {
		return err
	}
	temp := l.current() + ".new"
	if err := host.Remove(temp); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Join("runs", run), temp); err != nil {
		return fmt.Errorf("set the current run: %w", err)
	}
	if err := os.Rename(temp, l.current()); err != nil {
		return fmt.Errorf("set the current run: %w", err)
	}
	return host.SyncDir(filepath.Dir(l.current()))
}

func (l Layout) specPath(run string, phase protocol.Phase) string {
	return filepath.Join(l.RunDir(run), string(phase)+".json")
}

// Spec reads what was asked for a phase of a run; ok is false if nothing was.
func (l Layout) Spec(run string, phase protocol.Phase) (spec protocol.Spec, ok bool, err error) {
	data, err := os.ReadFile(l.specPath(run, phase))
	if errors.Is(err, fs.ErrNotExist) {
		return protocol.Spec{}, false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &spec)
	}
	if err == nil {
		err = spec.Validate()
	}
	if err == nil && (spec.Run != run || spec.Phase != phase) {
		err = fmt.Errorf("it is for phase %s of run %s", spec.Phase, spec.Run)
	}
	if err != nil {
		return protocol.Spec{}, false, &specError{fmt.Errorf("read spec %s: %w", l.specPath(run, phase), err)}
	}
	return spec, true, nil
}

// errSpec is in the chain of the error for a spec that cannot be used.
var errSpec = errors.New("the spec cannot be used")

type specError struct{ error }

func (e *specError) Unwrap() error        { return e.error }
func (e *specError) Is(target error) bool { return target == errSpec }

// Ask writes down what is asked for a phase. What was asked first stays, but for the pod, which may be a new one by now.
func (l Layout) Ask(spec protocol.Spec) error {
	if before, ok, err := l.Spec(spec.Run, spec.Phase); err != nil {
		return err
	} else if ok {
		before.Pod = spec.Pod
		spec = before
	}
	data, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return fmt.Errorf("write spec: %w", err)
	}
	if err := l.MakeDir(); err != nil {
		return fmt.Errorf("write spec: %w", err)
	}
	if err := os.MkdirAll(l.RunDir(spec.Run), 0o700); err != nil {
		return fmt.Errorf("write spec: %w", err)
	}
	return host.Replace(l.specPath(spec.Run, spec.Phase), append(data, '\n'), 0o600)
}

// againPath marks a rollback that failed before and is asked for again.
func (l Layout) againPath(run string) string { return filepath.Join(l.RunDir(run), "rollback-again") }

// AskRollback asks for the rollback of a run by hand, also once more.
func (l Layout) AskRollback(run string) error {
	spec, ok, err := l.Spec(run, protocol.PhasePrepare)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("roll back run %s: it has no spec", run)
	}
	spec.Phase = protocol.PhaseRollback
	return l.AskAgain(spec)
}

// AskAgain asks for a rollback also where an earlier one of the run failed or was refused.
func (l Layout) AskAgain(spec protocol.Spec) error {
	if err := l.Ask(spec); err != nil {
		return err
	}
	return host.Replace(l.againPath(spec.Run), nil, 0o600)
}

// forwardPath is there while the open phase may go forward. To remove it needs no space, so that a phase can be condemned when the
// disk is full.
func (l Layout) forwardPath(run string) string { return filepath.Join(l.RunDir(run), "forward") }

// spare is the space held back for a run, on each file system that a switch writes to.
func (l Layout) spare(run string) host.Spare {
	return host.NewSpare(l.RunDir(run), filepath.Join(l.Root, "/etc"), filepath.Join(l.Root, "/var/lib/kubelet"))
}

// attempt is which rollback of a run was asked for last.
type attempt struct {
	ID string `json:"id"`
	// After is the last event of the attempts before it.
	After int64 `json:"after"`
}

// Attempt takes note of a rollback's attempt and returns the number of the last event that belongs to earlier ones. failed is the
// number of the event that says that a rollback failed, 0 without one.
func (l Layout) Attempt(run, id string, failed int64) (after int64, err error) {
	path := filepath.Join(l.RunDir(run), "rollback-attempt.json")
	var last attempt
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &last)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read attempt %s: %w", path, err)
	}
	if err == nil && last.ID == id {
		return last.After, nil
	}
	if data, err = json.Marshal(attempt{ID: id, After: failed}); err != nil {
		return 0, fmt.Errorf("write attempt: %w", err)
	}
	return failed, host.Replace(path, append(data, '\n'), 0o600)
}

// unitText: started at boot, too, before the kubelet. It does not wait for Docker, whose unit has no time limit at its start: steps start
// and stop what they need, and the deadline has to act whatever hangs. A stop does not undo anything; see engine.ErrInterrupted.
const unitText = `# Written by kubectl-runtime while it works on this node; it goes when that is done.
[Unit]
Description=Move this node to another container runtime
Documentation=https://github.com/kubectl-runtime/kubectl-runtime
After=dbus.service containerd.service
Before=kubelet.service
RequiresMountsFor=%[1]s
StartLimitIntervalSec=0

[Service]
Type=simple
ExecStart=%[2]s run
Restart=on-failure
RestartSec=1
RestartPreventExitStatus=%[3]d
TimeoutStopSec=20
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`

// Install writes the unit and has it come up at boot.
func (l Layout) Install(ctx context.Context, systemd host.Systemd, program string) error {
	text := fmt.Sprintf(unitText, host.Dir, program, ExitPermanent)
	if now, err := os.ReadFile(l.unitPath()); err != nil || string(now) != text {
		if err := host.Replace(l.unitPath(), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return host.EnsureEnabled(ctx, systemd, host.Unit, host.UnitPath) // which has systemd read its files again where it has to
}

// uninstall removes the unit; the process that it runs goes on.
func (l Layout) uninstall(ctx context.Context, systemd host.Systemd) error {
	if host.Absent(l.unitPath()) {
		return nil
	}
	if err := host.Disable(systemd, host.Unit); err != nil {
		return err
	}
	if err := host.Remove(l.unitPath()); err != nil {
		return err
	}
	return systemd.DaemonReload(ctx)
}
