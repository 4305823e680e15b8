package unit

import (
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// events is a run's event file, opened when it is first needed and again for as long as that fails: what the plugin sees must not
// decide whether the host is brought to an end.
type events struct {
	dir, run string
	now      func() time.Time
	relieve  func() bool
	file     *journal.Events
}

func (e *events) open() error {
	if e.file != nil {
		return nil
	}
	file, err := journal.OpenEvents(e.dir, e.run, e.now)
	if err != nil {
		return err
	}
	file.Relieve = e.relieve
	e.file = file
	return nil
}

// Append implements engine.Events.
func (e *events) Append(event protocol.Event) error {
	if err := e.open(); err != nil {
		return err
	}
	return e.file.Append(event)
}

// Result returns the result of a phase that the file holds; none if it cannot be read.
func (e *events) Result(phase protocol.Phase) (protocol.Result, bool) {
	if e.open() != nil {
		return protocol.Result{}, false
	}
	return e.file.Result(phase)
}

func (e *events) close() {
	if e.file != nil {
		_ = e.file.Close()
	}
}
