// Package unit is the host unit, kubectl-runtime.service: its files below /var/lib/kubectl-runtime, how it is installed and
// removed, and what it does when systemd starts it. It is the one who runs the engine on the host's steps; pod and
// command line only ask it to.
package unit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// phases are all phases, in the order in which those that were asked for are carried out.
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

// makeRunDir makes the directory of a run.
func (l Layout) makeRunDir(run string) error {
	if err := l.MakeDir(); err != nil {
		return err
	}
	return os.MkdirAll(l.RunDir(run), 0o700)
}

// Requests returns what the host is asked to do.
func (l Layout) Requests() Requests { return Requests{l} }

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

// forwardPath is there while the open phase may go forward. To remove it needs no space, so that a phase can be condemned when the
// disk is full.
func (l Layout) forwardPath(run string) string { return filepath.Join(l.RunDir(run), "forward") }

// spare is the space held back for a run, on each file system that a switch writes to.
func (l Layout) spare(run string) host.Spare {
	return host.NewSpare(l.RunDir(run), filepath.Join(l.Root, "/etc"), filepath.Join(l.Root, "/var/lib/kubelet"))
}

// Runs lists the runs on this host, oldest first.
func (l Layout) Runs() ([]string, error) {
	entries, err := os.ReadDir(l.runs())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int {
		ai, aerr := a.Info()
		bi, berr := b.Info()
		if aerr != nil || berr != nil {
			return 0
		}
		return ai.ModTime().Compare(bi.ModTime())
	})
	var runs []string
	for _, entry := range entries {
		runs = append(runs, entry.Name())
	}
	return runs, nil
}
