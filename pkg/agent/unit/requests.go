package unit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Requests are what the host is asked to do: a spec for each phase of a run, and the mark of a rollback that is asked for again.
type Requests struct{ layout Layout }

func (r Requests) specPath(run string, phase protocol.Phase) string {
	return filepath.Join(r.layout.RunDir(run), string(phase)+".json")
}

// Spec reads what was asked for a phase of a run; ok is false if nothing was.
func (r Requests) Spec(run string, phase protocol.Phase) (spec protocol.Spec, ok bool, err error) {
	data, err := os.ReadFile(r.specPath(run, phase))
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
		return protocol.Spec{}, false, &specError{fmt.Errorf("read spec %s: %w", r.specPath(run, phase), err)}
	}
	return spec, true, nil
}

// errSpec is in the chain of the error for a spec that cannot be used.
var errSpec = errors.New("the spec cannot be used")

type specError struct{ error }

func (e *specError) Unwrap() error        { return e.error }
func (e *specError) Is(target error) bool { return target == errSpec }

// Ask writes down what is asked for a phase. What was asked first stays, but for the pod, which may be a new one by now.
func (r Requests) Ask(spec protocol.Spec) error {
	if before, ok, err := r.Spec(spec.Run, spec.Phase); err != nil {
		return err
	} else if ok {
		before.Pod = spec.Pod
		spec = before
	}
	data, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return fmt.Errorf("write spec: %w", err)
	}
	if err := r.layout.makeRunDir(spec.Run); err != nil {
		return fmt.Errorf("write spec: %w", err)
	}
	return host.Replace(r.specPath(spec.Run, spec.Phase), append(data, '\n'), 0o600)
}

// againPath marks a rollback that failed before and is asked for again.
func (r Requests) againPath(run string) string {
	return filepath.Join(r.layout.RunDir(run), "rollback-again")
}

// AskRollback asks for the rollback of a run by hand, also once more.
func (r Requests) AskRollback(run string) error {
	spec, ok, err := r.Spec(run, protocol.PhasePrepare)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("roll back run %s: it has no spec", run)
	}
	spec.Phase = protocol.PhaseRollback
	return r.AskAgain(spec)
}

// AskAgain asks for a rollback also where an earlier one of the run failed or was refused.
func (r Requests) AskAgain(spec protocol.Spec) error {
	if err := r.Ask(spec); err != nil {
		return err
	}
	return host.Replace(r.againPath(spec.Run), nil, 0o600)
}

// attempt is which rollback of a run was asked for last.
type attempt struct {
	ID string `json:"id"`
	// After is the last event of the attempts before it.
	After int64 `json:"after"`
}

// Attempt takes note of a rollback's attempt and returns the number of the last event that belongs to earlier ones. failed is the
// number of the event that says that a rollback failed, 0 without one.
func (r Requests) Attempt(run, id string, failed int64) (after int64, err error) {
	path := filepath.Join(r.layout.RunDir(run), "rollback-attempt.json")
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
