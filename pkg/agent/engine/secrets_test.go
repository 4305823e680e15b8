package engine

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// logged is an error with what a unit logged.
type logged struct{ error }

func (logged) Detail() string { return "dockerd: pull with password=hunter2hunter2\nexit 1" }

// heard keeps the events as they are encoded for the journal and the log.
type heard []string

func (h *heard) Append(e protocol.Event) error {
	line, err := e.Encode()
	*h = append(*h, string(line))
	return err
}

// TestFailuresHoldNoSecrets: what failed goes to the journal, the pod's log and the user's terminal, with what a unit logged.
func TestFailuresHoldNoSecrets(t *testing.T) {
	w, events := newWorld(), heard{}
	w.fails["apply b"] = logged{errors.New("proxy http://user:hunter2hunter2@proxy:3128 says no")}
	w.fails["revert a"] = errors.New("cannot log in with token: hunter2hunter2")
	e := &Engine{Journal: memory{w}, Events: &events, Clock: w, Steps: w.steps()}
	result, err := e.Run(t.Context(), protocol.PhasePrepare, time.Hour)
	if err != nil || result.Outcome != protocol.OutcomeBroken || !strings.Contains(result.Message, "@proxy:3128 says no; then could not undo a: cannot log in") {
		t.Errorf("%+v, %v", result, err)
	}
	said, err := json.Marshal([]any{result, w.records, events})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(said), "hunter2") || !strings.Contains(string(said), "trying again") {
		t.Errorf("%s", said)
	}

	w = newWorld()
	w.fails["apply b"] = logged{errors.New("no luck")}
	e = &Engine{Journal: memory{w}, Events: &heard{}, Clock: w, Steps: w.steps()}
	if result, err = e.Run(t.Context(), protocol.PhasePrepare, time.Hour); err != nil || result.Detail != "dockerd: pull with password=REDACTED\nexit 1" {
		t.Errorf("%q, %v", result.Detail, err)
	}
}
