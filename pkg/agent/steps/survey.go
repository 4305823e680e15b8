package steps

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/inspect"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/redact"
)

// Survey is what a switch would find on a host, and do to it.
type Survey struct {
	Facts    protocol.Facts
	Findings []protocol.Finding
	Steps    []protocol.PlanStep
	// Files are in the order of the steps. They are left out where what was found is not enough to tell them.
	Files []protocol.FileChange
}

// filesNeed are the looks that have to succeed before the files can be told.
var filesNeed = []string{
	protocol.CheckKubelet, protocol.CheckDocker, protocol.CheckDockerConfig, protocol.CheckContainerd, protocol.CheckNetwork, protocol.CheckCarried,
	protocol.CheckKubeletFiles,
}

// Look takes the same looks as the step inspect, past the first that refuses, and asks the steps for the files that they would
// write. It changes nothing on the host.
func Look(ctx context.Context, h node.Host) (Survey, error) {
	if !host.Booted("/") {
		return Survey{Findings: []protocol.Finding{{Check: protocol.CheckSystemd, Message: "this host does not run systemd"}}}, nil
	}
	h.ReadOnly = true
	inspected, err := inspect.RunAll(ctx, &h)
	if err != nil {
		return Survey{}, err
	}
	s := Survey{Facts: inspected.Found.Facts, Findings: inspected.Findings}
	memo, err := json.Marshal(inspected.Found)
	if err != nil {
		return s, fmt.Errorf("record what was found: %w", err)
	}
	h.Records = func() []journal.Record {
		return []journal.Record{{Kind: journal.KindIntent, Phase: protocol.PhasePrepare, Step: facts.InspectID, Memo: memo}}
	}
	known := !slices.ContainsFunc(filesNeed, func(check string) bool { return slices.Contains(inspected.Failed, check) })
	return s, s.askSteps(ctx, &h, known)
}

// askSteps lists the steps, and with files those that each would change.
func (s *Survey) askSteps(ctx context.Context, h *node.Host, files bool) error {
	all := List(h)
	for _, phase := range []protocol.Phase{protocol.PhasePrepare, protocol.PhaseCutover, protocol.PhaseVerify} {
		for _, step := range all[phase] {
			s.Steps = append(s.Steps, protocol.PlanStep{Phase: phase, ID: step.ID(), Title: step.Title()})
			asked, ok := step.(interface {
				planFiles(ctx context.Context) ([]desired.File, error)
			})
			if !ok || !files {
				continue
			}
			planned, err := asked.planFiles(ctx)
			if err != nil {
				return fmt.Errorf("plan step %s: %w", step.ID(), err)
			}
			for _, file := range planned {
				if !file.Unchanged() {
					s.Files = append(s.Files, fileChange(file, step.ID()))
				}
			}
		}
	}
	return nil
}

// fileChange is what a plan shows of a file that a step changes.
func fileChange(f desired.File, step string) protocol.FileChange {
	c := protocol.FileChange{Step: step, Path: f.Resolved(), Action: protocol.ActionUpdate}
	switch {
	case f.Old == nil:
		c.Action = protocol.ActionCreate
		if !f.Link {
			mode := f.Mode
			if mode == 0 {
				mode = 0o644
			}
			c.Mode = fmt.Sprintf("%04o", mode)
		}
	case f.New == nil:
		c.Action = protocol.ActionRemove
	}
	if f.Link {
		c.Link = cmp.Or(string(f.New), string(f.Old))
		return c
	}
	c.Diff = Diff(c.Path, f.Old, f.New)
	return c
}

// maxDiffed is far above any configuration file, in bytes.
const maxDiffed = 1 << 20

// Diff is a unified diff of a file; nil is one that is not there. Secrets are taken out of both sides first, so that no hunk begins in
// the middle of one.
func Diff(path string, old, new []byte) string {
	names := [2]string{path, path}
	for i, data := range [][]byte{old, new} {
		switch {
		case data == nil:
			names[i] = "/dev/null"
		case len(data) > maxDiffed:
			return fmt.Sprintf("Files %s before and after differ, and are too large to show\n", path)
		case !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0:
			return fmt.Sprintf("Binary files %s before and after differ\n", path)
		}
	}
	text := diff.Diff(names[0], redact.Text(old), names[1], redact.Text(new))
	_, text, _ = bytes.Cut(text, []byte("\n")) // "diff OLD NEW", which is no part of the unified format
	return string(text)
}

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
