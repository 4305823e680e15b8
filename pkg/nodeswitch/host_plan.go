package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/jobnamespace"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// HostPlan is what an agent found on a node's host, and what a switch would do there.
type HostPlan struct {
	Facts    protocol.Facts
	Findings []protocol.Finding
	Steps    []protocol.PlanStep
	// Files are in the order of the steps, with whole diffs.
	Files []protocol.FileChange

	// parts are those of a diff whose last one has not come.
	parts []string
	// size is how many findings, steps and parts of files were reported.
	size int
}

// maxPlan bounds them: an agent that means well reports a hundred, and a plan says more of each than the agent did.
const maxPlan = 2000

// take adds one event of the agent's.
func (p *HostPlan) take(event protocol.Event) {
	if event.Finding != nil || event.PlanStep != nil || event.FileChange != nil {
		p.size++
	}
	switch {
	case p.size > maxPlan:
	case event.Facts != nil:
		p.Facts = *event.Facts
	case event.Finding != nil:
		p.Findings = append(p.Findings, *event.Finding)
	case event.PlanStep != nil:
		p.Steps = append(p.Steps, *event.PlanStep)
	case event.FileChange != nil:
		p.parts = append(p.parts, event.FileChange.Diff)
		if !event.FileChange.Continues {
			event.FileChange.Diff = strings.Join(p.parts, "")
			p.Files, p.parts = append(p.Files, *event.FileChange), nil
		}
	}
}

// lookTimeout bounds the look at one host, the pull of the agent's image included.
const lookTimeout = 12 * time.Minute

// lookExpiry bounds how long a look that was killed keeps the namespace open: its time, and what the clocks of two machines may differ.
const lookExpiry = lookTimeout + time.Hour

// LookAtHost has an agent look at a node's host. It claims nothing and changes nothing on the node; in the cluster it creates the namespace
// where that is missing, and a Job, which it removes.
func (r *Switcher) LookAtHost(ctx context.Context, name string) (*HostPlan, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, fmt.Errorf("not done after %s", lookTimeout))
	defer cancel()
	s := r.newSession(name)
	s.run = nodestate.NewRun(r.clock.Now())
	began := s.begin(StageLook)
	plan, err := s.host.look(ctx)
	if err != nil {
		err = fmt.Errorf("look at the host of node %s: %w", name, err)
	}
	s.end(StageLook, began, err)
	return plan, err
}

func (s *hostWork) look(ctx context.Context) (*HostPlan, error) {
	namespace, err := s.namespaces().Ensure(ctx)
	if err != nil {
		return nil, err
	}
	key := jobnamespace.Key(s.run + "/" + s.name)
	if _, _, err := s.namespaces().Open(ctx, namespace, key, s.clock.Now().Add(lookExpiry).UTC().Format(time.RFC3339)); err != nil {
		return nil, err
	}
	defer func() {
		undo, cancel := s.undoContext(ctx)
		defer cancel()
		if err := s.namespaces().Close(undo, key, nil); err != nil {
			s.tell(Warning, "%s", err)
		}
	}()
	pods, err := s.podsOn(ctx)
	if err != nil {
		return nil, err
	}
	s.images = s.imagesToBring(ctx, pods)
	spec := s.spec(protocol.PhasePlan)
	defer func() {
		undo, cancel := s.undoContext(ctx)
		defer cancel()
		if err := s.runner.RemoveJob(undo, spec); err != nil {
			s.tell(Warning, "%s", err)
		}
	}()
	// Not by way of the claim: a look has none.
	job, err := nodejob.Job(s.params(spec))
	if err != nil {
		return nil, err
	}
	if err := s.runner.Ensure(ctx, job); err != nil {
		return nil, err
	}
	plan := &HostPlan{}
	follower := s.runner.NewFollower(plan.take, func(text string) { s.tell(Info, "%s", text) })
	result, err := follower.Follow(ctx, spec, nodejob.InService, false)
	if err != nil {
		var noResult *nodejob.NoResultError
		if errors.As(err, &noResult) {
			err = noResult.Cause
			if len(noResult.Log) > 0 {
				err = fmt.Errorf("%w; the agent said: %s", err, strings.Join(noResult.Log, "; "))
			}
		}
		return nil, err
	}
	if result.Outcome != protocol.OutcomeSucceeded {
		return nil, resultError(result)
	}
	if plan.size > maxPlan {
		return nil, fmt.Errorf("the agent reports more than %d findings, steps and files, which no agent does", maxPlan)
	}
	return plan, nil
}
