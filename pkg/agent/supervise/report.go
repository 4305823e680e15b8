package supervise

import (
	"errors"
	"fmt"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

func (s *Supervisor) refuse(message, hint string, cause error) (protocol.Result, error) {
	return s.report(protocol.OutcomeRefused, message, hint, cause)
}

// report reports a result that no file on the host holds.
func (s *Supervisor) report(outcome protocol.Outcome, message, hint string, cause error) (protocol.Result, error) {
	result := protocol.Result{Outcome: outcome, Message: message, Hint: hint}
	var detail interface {
		error
		Detail() string
	}
	if errors.As(cause, &detail) {
		result.Detail = detail.Detail()
	}
	event := protocol.Event{Version: protocol.Version, Seq: s.lastSeq() + 1, Time: time.Now().UTC(), Run: s.Spec.Run, Phase: s.Spec.Phase, Result: &result}
	s.unfiled = &event
	return result, s.write(event)
}

// write writes an event to the pod's log.
func (s *Supervisor) write(event protocol.Event) error {
	line, err := event.Encode()
	if err == nil {
		_, err = s.Out.Write(line)
	}
	if err != nil {
		return fmt.Errorf("write events: %w", err)
	}
	return nil
}

// maxTermination bounds a container's termination message in bytes (pkg/kubelet/container, MaxContainerTerminationMessageLength).
const maxTermination = 4096

// Termination is what the pod leaves in its status, for a plugin that cannot read its log: the events with the host's facts and the results, a line
// each. Where they do not fit, the facts are left out.
func (s *Supervisor) Termination() []byte {
	var facts []byte
	results := map[protocol.Phase]protocol.Event{}
	take := func(event protocol.Event) {
		switch {
		case event.Facts != nil:
			brief := *event.Facts
			brief.Warnings = nil
			event.Facts = &brief
			facts, _ = event.Encode() // without it, what is read from it is not known
		case event.Result != nil:
			brief := *event.Result
			brief.Detail, brief.ChangedFiles = "", nil
			event.Result = &brief
			results[event.Phase] = event
		}
	}
	if err := s.eachEvent(take); err != nil {
		return nil
	}
	if s.unfiled != nil {
		take(*s.unfiled)
	}
	phases := []protocol.Phase{s.Spec.Phase}
	if s.Spec.Phase == protocol.PhaseVerify {
		phases = []protocol.Phase{protocol.PhaseCutover, protocol.PhaseVerify} // one pod asks for both
	}
	var lines []byte
	for _, phase := range phases {
		if event, ok := results[phase]; ok {
			line, err := event.Encode()
			if err != nil {
				return nil
			}
			lines = append(lines, line...)
		}
	}
	if len(facts)+len(lines) <= maxTermination {
		lines = append(facts, lines...)
	}
	return lines[:min(len(lines), maxTermination)]
}

func (s *Supervisor) lastSeq() int64 {
	var seq int64
	_ = s.eachEvent(func(event protocol.Event) { seq = event.Seq }) // what cannot be read is refused without a number
	return seq
}
