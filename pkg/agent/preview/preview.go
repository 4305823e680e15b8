// Package preview makes a plan's events of what the checks found and of the files that the steps would change. It changes nothing on the host.
package preview

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/inspect"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/steps"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Survey is what a switch would find on a host, and do to it.
type Survey struct {
	Facts    protocol.Facts
	Findings []protocol.Finding
	Steps    []protocol.PlanStep
	// Files are in the order of the steps. They are left out where too little was found to know them.
	Files []protocol.FileChange
}

// filesNeed are the checks that have to succeed before the files are known.
var filesNeed = []string{
	protocol.CheckKubelet, protocol.CheckDocker, protocol.CheckDockerConfig, protocol.CheckContainerd, protocol.CheckNetwork, protocol.CheckCarried,
	protocol.CheckKubeletFiles,
}

// Look runs the checks that the step inspect runs, past the first that refuses, and asks the steps for the files that they would
// write.
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
	all := steps.List(h)
	for _, phase := range []protocol.Phase{protocol.PhasePrepare, protocol.PhaseCutover, protocol.PhaseVerify} {
		for _, step := range all[phase] {
			s.Steps = append(s.Steps, protocol.PlanStep{Phase: phase, ID: step.ID(), Title: step.Title()})
			asked, ok := step.(interface {
				PlanFiles(ctx context.Context) ([]desired.File, error)
			})
			if !ok || !files {
				continue
			}
			planned, err := asked.PlanFiles(ctx)
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
