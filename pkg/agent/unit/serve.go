package unit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
)

// ExitPermanent is the exit code by which the unit tells systemd not to start it again: nothing would change.
const ExitPermanent = 3

// PermanentError is one that another start would only meet again.
type PermanentError struct{ Err error }

func (e *PermanentError) Error() string { return e.Err.Error() }
func (e *PermanentError) Unwrap() error { return e.Err }

const (
	// maxTries bounds the attempts while no phase is open: then the host is as it was, and whoever asked is to learn of it.
	maxTries = 5
	// longestWait bounds the pause between two attempts while one is.
	longestWait = 30 * time.Second
)

// Serve runs Run until it succeeds. What may pass is tried again with growing pauses, for as long as a phase is open. What will not
// ends it with a *PermanentError, once Rescue has brought the node back into service.
func (u *Unit) Serve(ctx context.Context) error {
	for try, wait := 1, time.Second; ; try, wait = try+1, min(2*wait, longestWait) {
		err := u.Run(ctx)
		switch {
		case err == nil || errors.Is(err, engine.ErrInterrupted):
			return err
		case errors.Is(err, journal.ErrUnusable) || errors.Is(err, errSpec):
			return &PermanentError{u.rescue(ctx, err)}
		case !u.busy() && try >= maxTries:
			return &PermanentError{err}
		}
		u.log(fmt.Sprintf("%v; trying again in %s", err, wait))
		if u.Clock.Sleep(ctx, wait) != nil {
			return fmt.Errorf("%w: %w", engine.ErrInterrupted, err)
		}
	}
}

// busy reports whether a phase is open, or nobody can tell.
func (u *Unit) busy() bool {
	run, err := u.Layout.Find()
	if err != nil || run == "" {
		return err != nil
	}
	_, records, err := journal.Read(u.Layout.RunDir(run))
	if err != nil {
		return true
	}
	_, open := engine.Open(records)
	return open
}

// rescue brings the node back into service, and keeps a run that can be read again later from resuming what it had not
// finished: it is undone then.
func (u *Unit) rescue(ctx context.Context, cause error) error {
	errs := []error{cause}
	if run, err := u.Layout.Current(); err == nil && run != "" && !host.Absent(u.Layout.RunDir(run)) {
		errs = append(errs, host.Remove(u.Layout.forwardPath(run)))
	}
	if u.Rescue != nil {
		did, err := u.Rescue(ctx)
		for _, line := range did {
			u.log(line)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (u *Unit) log(line string) {
	if u.Log != nil {
		u.Log(line)
	}
}
