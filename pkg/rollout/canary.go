package rollout

import (
	"context"
	"slices"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
)

// annotationCanaryFails names the canary's checks that failed before the switch, with commas between them.
const annotationCanaryFails = inventory.Prefix + "canary-fails"

// canaryFails reads annotationCanaryFails.
func canaryFails(annotations map[string]string) []string {
	return strings.FieldsFunc(annotations[annotationCanaryFails], func(r rune) bool { return r == ',' })
}

// baseline runs the canary on the old runtime, where the node serves as it is. What fails there, a policy that cuts pods off the API
// server or a webhook that allows no exec, is not the new runtime's doing. A canary that cannot be created, or whose image cannot be
// pulled, would prove nothing after the cutover: that is an error.
func (s *session) baseline(ctx context.Context) error {
	if err := s.keepClaim(ctx); err != nil {
		return err
	}
	failed, err := s.runner.Prove(ctx, s.canaryParams(true), func(string) {})
	if err != nil {
		return err
	}
	s.canaryFails = nil
	for _, check := range failed {
		s.canaryFails = append(s.canaryFails, check.Name)
		s.tell(Warning, "the canary pod fails a check on %s, which will not be held against the new runtime: %s: %s", s.old, check.Name, check.Message)
	}
	// A check may depend on one that failed, and the drain is to meet no pod of this run.
	return s.remove(ctx, nodejob.PhaseCanary)
}

// checkCanary proves the runtime with a pod.
func (s *session) checkCanary(ctx context.Context) error {
	if err := s.keepClaim(ctx); err != nil {
		return &nodejob.OutageError{Cause: err}
	}
	failed, err := s.runner.Prove(ctx, s.canaryParams(false), func(text string) { s.tell(Warning, "%s", text) })
	if err != nil {
		return err
	}
	var news []nodejob.CanaryCheck
	for _, check := range failed {
		if slices.Contains(s.canaryFails, check.Name) {
			s.tell(Warning, "the canary pod fails a check, as it did before the switch: %s: %s", check.Name, check.Message)
		} else {
			news = append(news, check)
		}
	}
	if len(news) > 0 {
		return &nodejob.CanaryError{Checks: news}
	}
	s.tell(Info, "the canary pod has passed its checks")
	return nil
}

func (s *session) canaryParams(baseline bool) nodejob.CanaryParams {
	return nodejob.CanaryParams{
		Node: s.name, Run: s.run, Image: s.options.CanaryImage, PullPolicy: s.options.PullPolicy, Baseline: baseline,
	}
}

// notBegun gives up before the host was asked to prepare. A run that is resumed may have asked it before.
func (s *session) notBegun(ctx context.Context, cause error, outcome Outcome) *Error {
	state := inventory.StateFailed
	switch {
	case s.report.Resumed && s.state != inventory.StatePreparing:
		state = inventory.StatePrepared
	case s.report.Resumed, ctx.Err() != nil:
		state = inventory.StatePreparing
	}
	if ctx.Err() != nil {
		outcome = OutcomeInterrupted
	}
	failed := s.retreat(ctx, StagePrepare, cause, state, outcome)
	failed.Resumable = state != inventory.StateFailed
	return failed
}
