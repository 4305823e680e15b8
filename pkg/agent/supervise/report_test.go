package supervise

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestSaysThatItIsAlive: while the host has nothing to report, the pod's log says that the pod is there, and the file on the host does not.
func TestSaysThatItIsAlive(t *testing.T) {
	h := &hostUnit{}
	s, out := newSupervisor(t, h)
	s.AliveEvery = time.Millisecond
	h.active = true
	done := make(chan struct{})
	s.Out = writerFunc(func(line []byte) (int, error) {
		out.Write(line)
		if event, err := protocol.DecodeEvent(line); err == nil && event.Alive {
			select {
			case <-done:
			default:
				close(done)
				report(t, s, success)
			}
		}
		return len(line), nil
	})
	if result, err := s.Run(context.Background()); err != nil || result.Message != "fine" {
		t.Fatal(result, err)
	}
	for _, event := range events(t, out) {
		if event.Alive != (event.Result == nil) || event.Run != "r1" {
			t.Errorf("%+v", event)
		}
	}
	if err := s.eachEvent(func(event protocol.Event) {
		if event.Alive {
			t.Errorf("in the file: %+v", event)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(data []byte) (int, error) { return f(data) }

// TestTermination: what the pod leaves in its status fits there and holds what the log would have: the host's facts, and the results.
func TestTermination(t *testing.T) {
	long := strings.Repeat("x", 10000)
	for _, test := range []struct {
		name  string
		facts protocol.Facts
		want  int
	}{
		{"short", protocol.Facts{NewEndpoint: "unix:///x"}, 3},
		{"long warnings and details", protocol.Facts{NewEndpoint: "unix:///x", Warnings: []string{long}}, 3},
		{"long facts", protocol.Facts{NewEndpoint: long}, 2},
	} {
		s, _ := newSupervisor(t, &hostUnit{})
		s.Spec.Phase = protocol.PhaseVerify // as after a cutover
		if err := os.MkdirAll(s.Layout.RunDir("r1"), 0o700); err != nil {
			t.Fatal(err)
		}
		report(t, s, protocol.Event{Facts: &test.facts})
		report(t, s, success) // the preparation's, which this pod did not ask for
		for _, phase := range []protocol.Phase{protocol.PhaseCutover, protocol.PhaseVerify} {
			report(t, s, protocol.Event{Phase: phase, Result: &protocol.Result{Outcome: protocol.OutcomeSucceeded, Detail: long, ChangedFiles: []string{long}}})
		}
		message := bytes.NewBuffer(s.Termination())
		if message.Len() > maxTermination {
			t.Errorf("%s: %d bytes", test.name, message.Len())
		}
		got := events(t, message)
		if len(got) != test.want || got[len(got)-1].Phase != protocol.PhaseVerify || got[len(got)-2].Phase != protocol.PhaseCutover {
			t.Errorf("%s: %+v", test.name, got)
		}
	}
	// A refusal is in no file on the host.
	s, _ := newSupervisor(t, &hostUnit{})
	if err := os.RemoveAll(filepath.Join(s.Layout.Root, "run")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := events(t, bytes.NewBuffer(s.Termination())); len(got) != 1 || got[0].Result.Outcome != protocol.OutcomeRefused {
		t.Errorf("%+v", got)
	}
}
