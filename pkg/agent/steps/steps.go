// Package steps is the list of what the agent does on a node, phase by phase, and what each step does. A step reads what it
// needs when it is recorded, changes the host through pkg/agent/host and the packages of one subject each, and can undo it.
//
// Whether and when a step runs is pkg/agent/engine's business; the host unit calls List.
package steps

import (
	"context"
	"encoding/json"
	"path/filepath"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Limits of the phases. The cutover's is in the Spec; a rollback has none but those of its steps.
const (
	PrepareTimeout = 30 * time.Minute
	VerifyTimeout  = 5 * time.Minute
)

// Timeout returns how long a phase may take.
func Timeout(spec protocol.Spec) time.Duration {
	switch spec.Phase {
	case protocol.PhaseCutover:
		return time.Duration(spec.CutoverSeconds) * time.Second
	case protocol.PhaseVerify:
		return VerifyTimeout
	case protocol.PhasePrepare, protocol.PhaseRollback, protocol.PhasePlan:
	}
	return PrepareTimeout
}

// List returns the steps of each phase, in order.
func List(h *node.Host) map[protocol.Phase][]engine.Step {
	return map[protocol.Phase][]engine.Step{
		protocol.PhasePrepare: {
			inspectHost(h),
			containerdInstall(h),
			containerdConfig(h),
			containerdService(h),
			importImages(h),
			rehearsal(h),
		},
		protocol.PhaseCutover: {
			kubeletStop(h),
			dockerPods(h),
			dockerStop(h),
			nodeSysctls(h),
			kubeletConfig(h),
			smokeTest(h),
			kubeletStart(h),
			nodeReady(h),
		},
		protocol.PhaseVerify: {
			verify(h),
		},
	}
}

// step is an engine.Step whose memo is an M.
type step[M any] struct {
	id, title string
	record    func(ctx context.Context, report engine.Report) (M, error)
	// files are those that apply will change, for a plan; record is made from them. Nil: none that stay changed.
	files  func(ctx context.Context) ([]desired.File, error)
	apply  func(ctx context.Context, memo M, report engine.Report) error
	revert func(ctx context.Context, memo M, report engine.Report) error // nil: there is nothing to undo
	// revertible is why revert could not succeed as the host is now; nil: nothing is known to stop it.
	revertible func(ctx context.Context, memo M) error
}

func (s step[M]) ID() string    { return s.id }
func (s step[M]) Title() string { return s.title }

func (s step[M]) Record(ctx context.Context, report engine.Report) (any, error) {
	return s.record(ctx, report)
}

// planFiles tells a plan which files the step would change.
func (s step[M]) planFiles(ctx context.Context) ([]desired.File, error) {
	if s.files == nil {
		return nil, nil
	}
	return s.files(ctx)
}

func (s step[M]) Apply(ctx context.Context, memo json.RawMessage, report engine.Report) error {
	return with(s.id, memo, func(m M) error { return s.apply(ctx, m, report) })
}

func (s step[M]) Revert(ctx context.Context, memo json.RawMessage, report engine.Report) error {
	if s.revert == nil {
		return nil
	}
	return with(s.id, memo, func(m M) error { return s.revert(ctx, m, report) })
}

// Revertible is engine.Checker's.
func (s step[M]) Revertible(ctx context.Context, memo json.RawMessage) error {
	if s.revertible == nil {
		return nil
	}
	return with(s.id, memo, func(m M) error { return s.revertible(ctx, m) })
}

func with[M any](id string, memo json.RawMessage, do func(M) error) error {
	m, err := node.Decode[M](id, memo)
	if err != nil {
		return err
	}
	return do(m)
}

// nothing is the memo of a step that needs none.
type nothing struct{}

func recordNothing(context.Context, engine.Report) (nothing, error) { return nothing{}, nil }

func backups(h *node.Host) host.Files { return host.Files{Dir: filepath.Join(h.RunDir, "files")} }

// undoable checks that the copies that undoFiles needs are whole.
func undoable(h *node.Host, changes []host.Change) error {
	for _, change := range changes {
		if err := backups(h).Undoable(change); err != nil {
			return err
		}
	}
	return nil
}

// undoFiles puts files back, newest first, and says whose edits it kept.
func undoFiles(h *node.Host, changes []host.Change, report engine.Report) error {
	for i := len(changes) - 1; i >= 0; i-- {
		edited, err := backups(h).Undo(changes[i])
		if edited != "" {
			report.Warn(changes[i].Path + " was edited after the switch; it is back as it was before, and what was edited is in " + edited)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
