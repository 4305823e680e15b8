package preview

import (
	"time"
	"unicode/utf8"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// maxPart bounds the part of a diff in one event, in bytes: JSON may take six for each, and a line has to stay below 16 KiB.
const maxPart = 2 << 10

// Events are the survey as the plugin gets it, up to the result.
func (s Survey) Events(spec protocol.Spec, now time.Time) []protocol.Event {
	var events []protocol.Event
	add := func(e protocol.Event) {
		e.Version, e.Seq, e.Time, e.Run, e.Phase = protocol.Version, int64(len(events)+1), now.UTC(), spec.Run, spec.Phase
		events = append(events, e)
	}
	add(protocol.Event{Facts: &s.Facts})
	for _, finding := range s.Findings {
		add(protocol.Event{Finding: &finding})
	}
	for _, step := range s.Steps {
		add(protocol.Event{PlanStep: &step})
	}
	for _, file := range s.Files {
		rest := file.Diff
		for len(rest) > maxPart {
			n := maxPart
			for !utf8.RuneStart(rest[n]) {
				n--
			}
			part := file
			part.Diff, part.Continues = rest[:n], true
			add(protocol.Event{FileChange: &part})
			rest = rest[n:]
		}
		file.Diff = rest
		add(protocol.Event{FileChange: &file})
	}
	add(protocol.Event{Result: &protocol.Result{Outcome: protocol.OutcomeSucceeded, Message: "looked at the host"}})
	return events
}
