package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// EventsName is the event file's name in a run's directory.
const EventsName = "events.jsonl"

// Events is a run's event file, open for appending. Events are numbered from 1, over all phases and restarts.
type Events struct {
	// Relieve is as in Journal.
	Relieve func() bool

	file    *os.File
	end     int64
	path    string
	run     string
	now     func() time.Time
	seq     int64
	results map[protocol.Phase]protocol.Result
}

// OpenEvents opens or creates the event file in dir and continues its numbering. A torn last line is cut off.
func OpenEvents(dir, run string, now func() time.Time) (*Events, error) {
	path := filepath.Join(dir, EventsName)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open events: %w", err)
	}
	e := &Events{file: file, path: path, run: run, now: now, results: map[protocol.Phase]protocol.Result{}}
	if err := e.load(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return e, host.SyncDir(dir)
}

func (e *Events) load() error {
	data, err := io.ReadAll(e.file)
	if err != nil {
		return fmt.Errorf("read events %s: %w", e.path, err)
	}
	good := 0
	for good < len(data) {
		line, rest, whole := bytes.Cut(data[good:], []byte("\n"))
		if !whole {
			break
		}
		event, err := protocol.DecodeEvent(line)
		if err != nil && len(rest) == 0 {
			break
		}
		good += len(line) + 1
		if errors.Is(err, protocol.ErrNotEvent) {
			continue // damaged: readers skip it, too, and what the agent does is decided by the journal alone
		}
		if err != nil {
			return fmt.Errorf("events %s: after event %d: %w", e.path, e.seq, err)
		}
		e.seq = event.Seq
		if event.Result != nil {
			e.results[event.Phase] = *event.Result
		}
	}
	if err := truncate(e.file, int64(good), int64(len(data))); err != nil {
		return fmt.Errorf("cut torn line off events %s: %w", e.path, err)
	}
	e.end = int64(good)
	return nil
}

// Append numbers, dates and writes one event. Every event but a step's progress is synced to the disk.
func (e *Events) Append(event protocol.Event) error {
	event.Version, event.Run, event.Seq, event.Time = protocol.Version, e.run, e.seq+1, e.now().UTC()
	line, err := event.Encode()
	if err != nil {
		return err
	}
	synced := event.Step == nil || event.Step.State != protocol.StepProgress
	if err := relieved(e.Relieve, func() error { return writeAt(e.file, e.end, line, synced) }); err != nil {
		return fmt.Errorf("write events %s: %w", e.path, err)
	}
	e.end += int64(len(line))
	e.seq++
	if event.Result != nil {
		e.results[event.Phase] = *event.Result
	}
	return nil
}

// Result returns the result of a phase that the file holds.
func (e *Events) Result(phase protocol.Phase) (protocol.Result, bool) {
	r, ok := e.results[phase]
	return r, ok
}

// Close closes the file.
func (e *Events) Close() error { return e.file.Close() }
