package untrusted

import (
	"fmt"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// The bounds of what one event holds: bytes of a text, lines, and entries of a list. The agent's own are far below.
const (
	maxID     = 64
	maxShort  = 256
	maxText   = 2 << 10
	maxBlock  = 16 << 10
	maxLines  = 200
	maxList   = 200
	maxMillis = 1e9 // eleven days
)

// Event reads one line of an agent's log. Its errors are those of protocol.DecodeEvent, and one for an event that no agent writes. Run and
// phase may be others than those that were asked for.
func Event(line []byte) (protocol.Event, error) {
	e, err := protocol.DecodeEvent(line)
	if err != nil {
		return protocol.Event{}, err
	}
	if _, err := protocol.ParseRun(e.Run); err != nil {
		return protocol.Event{}, fmt.Errorf("event %d: %w", e.Seq, err)
	}
	if e.Seq < 0 {
		return protocol.Event{}, fmt.Errorf("event %d: its number is negative", e.Seq)
	}
	e.Phase = protocol.Phase(Line(string(e.Phase), maxID))
	if e.Step != nil {
		e.Step = step(*e.Step)
	}
	if e.Facts != nil {
		e.Facts = facts(*e.Facts)
	}
	if e.Log != nil {
		e.Log = &protocol.Log{Level: Line(e.Log.Level, maxID), Message: Line(e.Log.Message, maxText)}
	}
	if e.Result != nil {
		e.Result = result(*e.Result)
	}
	if f := e.Finding; f != nil {
		e.Finding = &protocol.Finding{Check: Line(f.Check, maxID), Message: Line(f.Message, maxText), Hint: Line(f.Hint, maxText)}
	}
	if p := e.PlanStep; p != nil {
		e.PlanStep = &protocol.PlanStep{Phase: protocol.Phase(Line(string(p.Phase), maxID)), ID: Line(p.ID, maxID), Title: Line(p.Title, maxShort)}
	}
	if f := e.FileChange; f != nil {
		e.FileChange = &protocol.FileChange{
			Step: Line(f.Step, maxID), Path: Line(f.Path, maxText), Action: protocol.ChangeAction(Line(string(f.Action), maxID)),
			Mode: Line(f.Mode, maxID), Link: Line(f.Link, maxText), Diff: Visible(head(f.Diff, maxBlock)), Continues: f.Continues,
		}
	}
	return e, nil
}

func step(s protocol.Step) *protocol.Step {
	return &protocol.Step{
		ID: Line(s.ID, maxID), Title: Line(s.Title, maxShort), State: protocol.StepState(Line(string(s.State), maxID)), Message: Line(s.Message, maxText),
		Done: max(0, s.Done), Total: max(0, s.Total), Unit: Line(s.Unit, maxID), ElapsedMillis: millis(s.ElapsedMillis),
	}
}

func facts(f protocol.Facts) *protocol.Facts {
	short := func(text string) string { return Line(text, maxShort) }
	return &protocol.Facts{
		OS: short(f.OS), Kernel: short(f.Kernel), KubeletVersion: short(f.KubeletVersion), DockerVersion: short(f.DockerVersion),
		ContainerdVersion: short(f.ContainerdVersion), ContainerdInstall: Line(f.ContainerdInstall, maxText),
		OldEndpoint: endpoint(f.OldEndpoint), NewEndpoint: endpoint(f.NewEndpoint),
		CgroupDriver: short(f.CgroupDriver), SandboxImage: short(f.SandboxImage), DockerRoot: Line(f.DockerRoot, maxText),
		ForeignContainers: list(f.ForeignContainers, maxShort), Warnings: list(f.Warnings, maxText),
	}
}

// endpoint is a CRI endpoint: it is written to the Node, where kubeadm reads it. What is none is left out.
func endpoint(text string) string {
	path, isSocket := strings.CutPrefix(text, "unix://")
	isPlain := !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) && len(text) <= maxShort
	if isPlain && (isSocket && strings.HasPrefix(path, "/") || strings.HasPrefix(text, "/") || text == "dockershim") {
		return text
	}
	return ""
}

func result(r protocol.Result) *protocol.Result {
	return &protocol.Result{
		Outcome: protocol.Outcome(Line(string(r.Outcome), maxID)), FailedStep: Line(r.FailedStep, maxID), Message: Line(r.Message, maxText),
		Detail: Block(r.Detail, maxLines, maxBlock), Hint: Line(r.Hint, maxText), RuntimeVersion: Line(r.RuntimeVersion, maxShort),
		ElapsedMillis: millis(r.ElapsedMillis), ChangedFiles: list(r.ChangedFiles, maxText),
	}
}

func list(texts []string, most int) []string {
	var all []string
	for i, text := range texts {
		if i == maxList {
			return append(all, fmt.Sprintf("%s and %d more", cutMark, len(texts)-i))
		}
		all = append(all, Line(text, most))
	}
	return all
}

// millis keeps a time from overflowing where it is counted in nanoseconds.
func millis(n int64) int64 { return min(max(0, n), maxMillis) }
