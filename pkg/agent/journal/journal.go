// Package journal keeps what the agent must not forget: the write-ahead journal of one run, and the file of events that
// the plugin reads. Both are files of JSON lines below the run's directory.
//
// It knows records, not what they mean: pkg/agent/engine decides. The agent's host unit writes; the pod reads events only.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// FileName is the journal's name in a run's directory.
const FileName = "journal.jsonl"

// Version is the version of the file's format, held by its first line. An agent refuses a newer one.
const Version = 1

// Kind says what a Record stands for.
type Kind string

// The kinds of records. A record is written and synced before what it announces, or after what it confirms.
const (
	KindOpen         Kind = "open"          // a phase begins; Deadline is set
	KindIntent       Kind = "intent"        // a step is about to be applied; Memo is what its Revert needs
	KindDone         Kind = "done"          // the step was applied
	KindSkipped      Kind = "skipped"       // the step has nothing to do here
	KindUndo         Kind = "undo"          // from here on the phase is undone; Failure says why
	KindReverting    Kind = "reverting"     // a step is about to be reverted
	KindReverted     Kind = "reverted"      // the step was reverted
	KindRevertFailed Kind = "revert-failed" // reverting was given up; Failure says why
	KindClose        Kind = "close"         // the phase ended; Result is set
)

// Failure is why a step failed, as it will be shown.
type Failure struct {
	Step    string `json:"step,omitempty"`
	Message string `json:"message"`
	Detail  string `json:"detail,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// Record is one line. Phase is that of the step, which for a revert can be an earlier one than the phase that is open.
type Record struct {
	Kind     Kind             `json:"kind"`
	Time     time.Time        `json:"time"`
	Phase    protocol.Phase   `json:"phase"`
	Step     string           `json:"step,omitempty"`
	Memo     json.RawMessage  `json:"memo,omitempty"`
	Deadline time.Time        `json:"deadline,omitzero"`
	Failure  *Failure         `json:"failure,omitempty"`
	Result   *protocol.Result `json:"result,omitempty"`
}

// Identity says whose journal it is. Machine is host.MachineID: the directory of a cloned disk is not this node's.
type Identity struct {
	Run     string `json:"run"`
	Node    string `json:"node"`
	Machine string `json:"machine"`
}

type header struct {
	Version int `json:"version"`
	Identity
}

// Journal is one run's journal, open for appending. It is not safe for concurrent use: one host unit writes it.
type Journal struct {
	// Relieve frees space when the disk is full and reports whether it did: the write is then tried again. Optional.
	Relieve func() bool

	file    *os.File
	path    string
	end     int64 // of the last line that counts
	records []Record
}

// Open opens or creates the journal in dir. A torn last line is dropped and cut off; damage before it, a newer version and a
// journal of another run, node or machine are errors.
func Open(dir string, id Identity) (*Journal, error) {
	path := filepath.Join(dir, FileName)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &Journal{file: file, path: path}
	if err := j.load(id); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return j, nil
}

// Read returns the identity and the records of the journal in dir without changing it; a torn last line is left out. An
// absent or still empty journal has no records.
func Read(dir string) (Identity, []Record, error) {
	path := filepath.Join(dir, FileName)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Identity{}, nil, lost(path, nil)
	}
	if err != nil {
		return Identity{}, nil, fmt.Errorf("read journal: %w", err)
	}
	id, records, _, err := parse(path, data)
	if err == nil {
		err = lost(path, records)
	}
	if err != nil || id == nil {
		return Identity{}, nil, err
	}
	return *id, records, nil
}

// ReadHere is Read on the host with this machine ID; the journal of another one is unusable.
func ReadHere(dir, machine string) (Identity, []Record, error) {
	id, records, err := Read(dir)
	if err == nil && id != (Identity{}) && id.Machine != machine {
		return id, nil, unusable(filepath.Join(dir, FileName), fmt.Errorf("it belongs to node %s (machine %s), not to this host (machine %s): was this disk cloned?",
			id.Node, id.Machine, machine))
	}
	return id, records, err
}

func (j *Journal) load(want Identity) error {
	data, err := io.ReadAll(j.file)
	if err != nil {
		return fmt.Errorf("read journal %s: %w", j.path, err)
	}
	id, records, good, err := parse(j.path, data)
	if err == nil {
		err = lost(j.path, records)
	}
	if err != nil {
		return err
	}
	if err := truncate(j.file, int64(good), int64(len(data))); err != nil {
		return fmt.Errorf("cut torn line off journal %s: %w", j.path, err)
	}
	j.end = int64(good)
	if id == nil {
		return j.writeLine(header{Version: Version, Identity: want}, true)
	}
	if *id != want {
		return unusable(j.path, fmt.Errorf("it belongs to run %s of node %s (machine %s), not to run %s of node %s (machine %s): was this disk cloned?",
			id.Run, id.Node, id.Machine, want.Run, want.Node, want.Machine))
	}
	j.records = records
	return nil
}

// parse returns the identity (nil if there is not one whole line), the records, and how many bytes of data they take.
func parse(path string, data []byte) (*Identity, []Record, int, error) {
	var id *Identity
	var records []Record
	good := 0
	for number := 1; good < len(data); number++ {
		line, rest, whole := bytes.Cut(data[good:], []byte("\n"))
		if !whole {
			break
		}
		err := parseLine(line, &id, &records)
		if err != nil && len(rest) == 0 && !errors.Is(err, errVersion) {
			break // never acknowledged: a line counts from its sync on
		}
		if err != nil {
			return nil, nil, 0, unusable(path, fmt.Errorf("line %d: %w", number, err))
		}
		good += len(line) + 1
	}
	return id, records, good, nil
}

var errVersion = errors.New("written by a newer agent")

func parseLine(line []byte, id **Identity, records *[]Record) error {
	if *id == nil {
		var h header
		if err := json.Unmarshal(line, &h); err != nil {
			return fmt.Errorf("damaged: %w", err)
		}
		if h.Version > Version {
			return fmt.Errorf("version %d is newer than %d: %w", h.Version, Version, errVersion)
		}
		if h.Version < 1 || h.Run == "" {
			return errors.New("damaged: not the head of a journal")
		}
		*id = &h.Identity
		return nil
	}
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("damaged: %w", err)
	}
	switch r.Kind {
	case KindOpen, KindIntent, KindDone, KindSkipped, KindUndo, KindReverting, KindReverted, KindRevertFailed, KindClose:
	default:
		return fmt.Errorf("damaged: unknown kind %q", r.Kind)
	}
	*records = append(*records, r)
	return nil
}

// Records returns all records, oldest first. The caller does not change them.
func (j *Journal) Records() []Record { return j.records }

// Append writes one record; when it returns without error the record is on the disk.
func (j *Journal) Append(r Record) error {
	if err := j.writeLine(r, false); err != nil {
		return err
	}
	j.records = append(j.records, r)
	return nil
}

func (j *Journal) writeLine(v any, created bool) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write journal %s: %w", j.path, err)
	}
	line = append(line, '\n')
	if err := relieved(j.Relieve, func() error { return writeAt(j.file, j.end, line, true) }); err != nil {
		return fmt.Errorf("write journal %s: %w", j.path, err)
	}
	j.end += int64(len(line))
	if !created {
		return nil
	}
	return host.SyncDir(filepath.Dir(j.path))
}

// Close closes the file; nothing is written.
func (j *Journal) Close() error { return j.file.Close() }

// file is what is written of an *os.File; tests let it fail.
type file interface {
	WriteAt(data []byte, at int64) (int, error)
	Truncate(size int64) error
	Sync() error
}

// writeAt writes a whole line at end. What lies beyond is left of a write that failed and could not be cut off again then: with it,
// a later line would be damage in the middle.
func writeAt(f file, end int64, line []byte, sync bool) error {
	err := f.Truncate(end)
	if err == nil {
		_, err = f.WriteAt(line, end)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(err, f.Truncate(end))
	}
	return nil
}

// relieved repeats a write on a full disk for as long as space is freed for it.
func relieved(relieve func() bool, write func() error) error {
	for {
		err := write()
		if !host.NoSpace(err) || relieve == nil || !relieve() {
			return err
		}
	}
}

func truncate(file *os.File, good, size int64) error {
	if good == size {
		return nil
	}
	if err := file.Truncate(good); err != nil {
		return err
	}
	return file.Sync()
}
