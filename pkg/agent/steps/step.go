package steps

import (
	"context"
	"encoding/json"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// step is an engine.Step whose memo is an M.
type step[M any] struct {
	id, title string
	record    func(ctx context.Context, report engine.Report) (M, error)
	// files are those that apply will change, for a plan; record is made from them. Nil: none that stay changed.
	files  func(ctx context.Context) ([]desired.File, error)
	apply  func(ctx context.Context, memo M, report engine.Report) error
	revert func(ctx context.Context, memo M, report engine.Report) error // nil: there is nothing to undo
	// changed are the paths of the files that apply has changed, for the phase's result; nil: none that stay changed.
	changed func(memo M) []string
	// revertible is why revert could not succeed as the host is now; nil: nothing is known to stop it.
	revertible func(ctx context.Context, memo M) error
}

func (s step[M]) ID() string { return s.id }

func (s step[M]) Title() string { return s.title }

func (s step[M]) Record(ctx context.Context, report engine.Report) (any, error) {
	return s.record(ctx, report)
}

// PlanFiles are the files that the step would change, for a plan.
func (s step[M]) PlanFiles(ctx context.Context) ([]desired.File, error) {
	if s.files == nil {
		return nil, nil
	}
	return s.files(ctx)
}

// changedFiles are the paths of the files that the step has changed, by what it recorded.
func (s step[M]) changedFiles(memo json.RawMessage) []string {
	m, err := node.Decode[M](s.id, memo)
	if err != nil || s.changed == nil {
		return nil
	}
	return s.changed(m)
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
