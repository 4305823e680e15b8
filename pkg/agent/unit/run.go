package unit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Work is what a phase consists of.
type Work struct {
	Steps   map[protocol.Phase][]engine.Step
	Timeout time.Duration
	// Finish completes the result when the phase was closed.
	Finish func(ctx context.Context, result *protocol.Result)
}

// Unit is the host unit at work.
type Unit struct {
	Layout  Layout
	Systemd host.Systemd
	Machine string
	// Program is the path of the running agent, which the unit is to start after a reboot.
	Program string
	Clock   engine.Clock
	// Rescue gives a held node back when the journal cannot be used, and says what it did. Optional.
	Rescue func(ctx context.Context) ([]string, error)
	// Log takes what the unit's own log is to hold. Optional.
	Log func(line string)
	// Work makes the steps for a spec. records returns the run's journal.
	Work func(spec protocol.Spec, runDir string, records func() []journal.Record) Work
}

// Run does what is open or asked for, and returns when nothing is. It is meant to be killed: the next Run goes on. The error is
// engine.ErrInterrupted when ctx ended.
func (u *Unit) Run(ctx context.Context) error {
	if err := u.Layout.MakeDir(); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	unlock, err := lock(filepath.Join(u.Layout.dir(), "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	run, err := u.Layout.Find()
	if err != nil {
		return err
	}
	if run == "" {
		return uninstall(ctx, u.Layout, u.Systemd)
	}
	if err := u.Layout.SetCurrent(run); err != nil {
		return err
	}
	if err := u.undoAbandoned(ctx, run); err != nil {
		return err
	}
	return u.carryOut(ctx, run)
}

// lock keeps a second agent off the host, whoever started it.
func lock(path string) (func(), error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another agent works on this host (lock %s): %w", path, err), file.Close())
	}
	return func() { _ = file.Close() }, nil
}

// undoAbandoned takes back what earlier runs had prepared and never used, before a new one begins: otherwise the new one would
// take their files for the host's own.
func (u *Unit) undoAbandoned(ctx context.Context, current string) error {
	if _, records, err := journal.Read(u.Layout.RunDir(current)); err != nil || len(records) > 0 {
		return err
	}
	entries, err := os.ReadDir(u.Layout.runs())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list runs: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() == current {
			continue
		}
		_, records, err := journal.Read(u.Layout.RunDir(entry.Name()))
		if err != nil {
			return err
		}
		if !abandoned(records) {
			continue
		}
		if err := u.Layout.Requests().AskRollback(entry.Name()); err != nil {
			return err
		}
		if err := u.carryOut(ctx, entry.Name()); err != nil {
			return err
		}
		if _, records, err = journal.Read(u.Layout.RunDir(entry.Name())); err != nil {
			return err
		}
		if r, _ := engine.Result(records, protocol.PhaseRollback); engine.Standing(records) {
			return fmt.Errorf("begin run %s: run %s before it cannot be undone: %s", current, entry.Name(), r.Message)
		}
	}
	return nil
}

// abandoned reports whether a run left changes that nobody uses: of a switch that did not succeed, or of one whose rollback did not.
func abandoned(records []journal.Record) bool {
	cutover, _ := engine.Result(records, protocol.PhaseCutover)
	rollback, _ := engine.Result(records, protocol.PhaseRollback)
	return engine.Standing(records) && (cutover.Outcome != protocol.OutcomeSucceeded || rollback.Outcome == protocol.OutcomeBroken)
}

// carryOut does all phases of a run that are open or asked for.
func (u *Unit) carryOut(ctx context.Context, run string) error {
	dir := u.Layout.RunDir(run)
	node, err := u.node(run)
	if err != nil {
		return err
	}
	j, err := journal.Open(dir, journal.Identity{Run: run, Node: node, Machine: u.Machine})
	if err != nil {
		return err
	}
	defer func() { _ = j.Close() }()
	spare := u.Layout.spare(run)
	j.Relieve = spare.Release
	events := &events{dir: dir, run: run, now: u.Clock.Now, relieve: spare.Release}
	defer events.close()
	for {
		spec, ok, err := u.next(run, j, events)
		if err != nil {
			return err
		}
		if !ok {
			return uninstall(ctx, u.Layout, u.Systemd)
		}
		if err := u.phase(ctx, spec, j, events); err != nil {
			return err
		}
	}
}

// node returns the node's name as any phase of the run gives it.
func (u *Unit) node(run string) (string, error) {
	for _, phase := range phases {
		if spec, ok, err := u.Layout.Requests().Spec(run, phase); err != nil || ok {
			return spec.Node, err
		}
	}
	return "", fmt.Errorf("run %s: nothing was asked for", run)
}

// next returns what is to be done: the phase that is open, or the first one that has no result yet. Once a rollback was asked for,
// no other phase begins any more, unless that rollback was refused and the refusal was reported: then the request is over.
func (u *Unit) next(run string, j *journal.Journal, events *events) (protocol.Spec, bool, error) {
	order := phases
	rollback, reported := events.Result(protocol.PhaseRollback)
	refused := reported && rollback.Outcome == protocol.OutcomeRefused && host.Absent(u.Layout.Requests().againPath(run))
	if _, ok, err := u.Layout.Requests().Spec(run, protocol.PhaseRollback); err != nil {
		return protocol.Spec{}, false, err
	} else if ok && !refused {
		order = phases[len(phases)-1:]
	}
	open, anyOpen := engine.Open(j.Records())
	if anyOpen {
		order = append([]protocol.Phase{open}, order...)
	}
	for i, phase := range order {
		isOpen := anyOpen && i == 0
		r, done := events.Result(phase)
		again := phase == protocol.PhaseRollback && !host.Absent(u.Layout.Requests().againPath(run)) &&
			(r.Outcome != protocol.OutcomeSucceeded || engine.Standing(j.Records()))
		if done && !again && !isOpen {
			continue
		}
		spec, ok, err := u.Layout.Requests().Spec(run, phase)
		if err != nil || ok {
			return spec, ok, err
		}
	}
	return protocol.Spec{}, false, nil
}

// phase carries out one phase and reports its result. The unit's own traces go before the result is seen: what waits for it may
// look at the host at once.
func (u *Unit) phase(ctx context.Context, spec protocol.Spec, j *journal.Journal, events *events) error {
	open, anyOpen := engine.Open(j.Records())
	// Without the unit a reboot would end the phase; one that is open already has to be brought to its end all the same.
	if err := Install(ctx, u.Layout, u.Systemd, u.Program); err != nil && !anyOpen {
		return err
	}
	if spec.Phase == protocol.PhaseRollback && !anyOpen {
		if err := u.withdrawPending(spec.Run, j.Records()); err != nil {
			return err
		}
	}
	var refuse error
	spare := u.Layout.spare(spec.Run)
	if !anyOpen && spec.Phase != protocol.PhaseVerify {
		refuse = spare.Take()
	}
	forward := u.Layout.forwardPath(spec.Run)
	if !anyOpen || open != spec.Phase {
		if err := host.Replace(forward, nil, 0o600); err != nil {
			return err
		}
	}
	work := u.Work(spec, u.Layout.RunDir(spec.Run), j.Records)
	e := &engine.Engine{
		Journal: j, Events: events, Clock: u.Clock, Steps: work.Steps, Stopping: u.Systemd.Stopping,
		Refuse: refuse, Relieve: spare.Release, Program: u.Program,
		Condemn:   func() error { return host.Remove(forward) },
		Condemned: func() bool { return host.Absent(forward) },
	}
	result, err := e.Run(ctx, spec.Phase, work.Timeout)
	if err != nil {
		if _, open := engine.Open(j.Records()); !open {
			err = errors.Join(err, spare.Drop()) // nothing has begun that would need it
		}
		return fmt.Errorf("run %s, phase %s: %w", spec.Run, spec.Phase, err)
	}
	if work.Finish != nil {
		work.Finish(ctx, &result)
	}
	return u.persist(ctx, func() error {
		if err := spare.Drop(); err != nil {
			return err
		}
		if spec.Phase == protocol.PhaseRollback {
			if err := host.Remove(u.Layout.Requests().againPath(spec.Run)); err != nil {
				return err
			}
		}
		if err := uninstall(ctx, u.Layout, u.Systemd); err != nil {
			return err
		}
		return events.Append(protocol.Event{Phase: spec.Phase, Result: &result})
	})
}

// withdrawPending takes back what was asked for before a rollback and has not begun. Nobody waits for it any more, and a rollback that is
// refused would leave it as the next thing to do.
func (u *Unit) withdrawPending(run string, records []journal.Record) error {
	for _, phase := range []protocol.Phase{protocol.PhaseCutover, protocol.PhaseVerify} {
		if _, done := engine.Result(records, phase); done {
			continue
		}
		if err := host.Remove(u.Layout.Requests().specPath(run, phase)); err != nil {
			return err
		}
	}
	return nil
}

// persist tries until it succeeds: what has come to its end on the host is to be seen, too.
func (u *Unit) persist(ctx context.Context, do func() error) error {
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		err := do()
		if err == nil {
			return nil
		}
		if u.Clock.Sleep(ctx, wait) != nil {
			return fmt.Errorf("%w: %w", engine.ErrInterrupted, err)
		}
	}
}
