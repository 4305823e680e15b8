package nodeswitch

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// giveBack uncordons the node and marks it as done.
func (s *forward) giveBack(ctx context.Context) error {
	set := nodestate.Set{
		nodestate.AnnotationPhase: string(nodestate.StateDone), nodestate.AnnotationTo: s.report.To, nodestate.AnnotationMessage: "",
	}
	if times, ok := timesOf(s.report.Stages); ok && !s.report.Resumed {
		set[nodestate.AnnotationTook] = times.String()
	}
	cordoned, err := s.node.Uncordon(ctx, set, nodestate.SwitchCRISocket(s.endpoint))
	if err != nil {
		return err
	}
	s.recordOutOfService(cordoned)
	s.pods.endLeaving(ctx)
	s.checks.checkMetrics(ctx)
	if err := s.host.remove(ctx); err != nil {
		s.tell(Warning, "%s", err)
	}
	return nil
}

// checkMetrics comes last: what it finds is no failure, and each request to a kubelet is one more of its own to the API server, to ask
// whether it is allowed. A node that waits for its pods to be Ready should not wait for those.
func (s *verification) checkMetrics(ctx context.Context) {
	s.prover().CheckMetrics(ctx, s.name, func(text string) { s.tell(Warning, "%s", text) })
}

// recordOutOfService ends the time out of service.
func (s *session) recordOutOfService(cordoned bool) {
	s.report.Cordoned = cordoned
	if !s.cordonedAt.IsZero() && !cordoned {
		s.report.OutOfService = s.clock.Now().Sub(s.cordonedAt)
	}
}

// giveBack uncordons the node and marks it as rolled back.
func (s *backward) giveBack(ctx context.Context) error {
	cordoned, err := s.node.Uncordon(ctx, nodestate.At(nodestate.StateRolledBack, "it was rolled back on request"), nodestate.RestoreCRISocket)
	if err != nil {
		return err
	}
	s.recordOutOfService(cordoned)
	s.pods.endLeaving(ctx)
	s.checks.checkMetrics(ctx)
	if err := s.host.remove(ctx); err != nil {
		s.tell(Warning, "%s", err)
	}
	return nil
}
