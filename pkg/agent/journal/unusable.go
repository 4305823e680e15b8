package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// ErrUnusable is in the chain of the error for a journal that tells nothing to go on from: a damaged one, one of a newer agent, of
// another run, node or machine, or one whose records are gone. To try again does not help, and the file is left as it is.
var ErrUnusable = errors.New("the journal cannot be used")

type unusableError struct {
	path string
	err  error
}

func unusable(path string, err error) error { return &unusableError{path, err} }

func (e *unusableError) Error() string        { return fmt.Sprintf("journal %s: %v", e.path, e.err) }
func (e *unusableError) Unwrap() error        { return e.err }
func (e *unusableError) Is(target error) bool { return target == ErrUnusable }

// Hint says what a person can do.
func (e *unusableError) Hint() string {
	dir := filepath.Dir(e.path)
	if errors.Is(e.err, errVersion) {
		return "use the release of kubectl-runtime that wrote it"
	}
	return fmt.Sprintf("the files from before lie in %s; once the node is as it should be, move the directory away: mv %s /root/", filepath.Join(dir, "files"), dir)
}

// lost is the error for a journal without records beside events, which are written after the first record only: to take it for a new
// one would be to forget what was changed.
func lost(path string, records []Record) error {
	if len(records) > 0 {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(filepath.Dir(path), EventsName))
	if err != nil {
		return nil //nolint:nilerr // without events there is nothing to compare with
	}
	for line := range bytes.Lines(data) {
		if event, err := protocol.DecodeEvent(line); err == nil {
			return unusable(path, fmt.Errorf("it is empty, although phase %s of run %s began on this host", event.Phase, event.Run))
		}
	}
	return nil
}
