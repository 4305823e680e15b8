package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// tryAdmission asks the API server by dry runs whether the cluster lets in what a run needs, before anything is changed: a policy, a quota or a
// webhook should refuse the switch, not a node that is out of service. Phase is that of the Job that is tried; the Jobs of the others differ from it in
// their arguments only.
func (s *session) tryAdmission(ctx context.Context, phase protocol.Phase) error {
	job, err := nodejob.Job(s.params(s.spec(phase)))
	if err != nil {
		return err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		s.image, err = s.runner.TryJob(groupCtx, job)
		return err
	})
	if s.back == nil { // the canary of a rollback that is not let in is a warning then
		group.Go(func() error {
			_, err := s.runner.TryPod(groupCtx, "the canary pod", nodejob.Canary(s.canaryParams()))
			return err
		})
	}
	return group.Wait()
}

// admissionHint is what to do about an object that is not let in, or "".
func admissionHint(err error) string {
	var refused *nodejob.AdmissionError
	var start *nodejob.StartError
	if !errors.As(err, &refused) && !(errors.As(err, &start) && start.NoPod && start.Reason == nodejob.FailedCreate) {
		return ""
	}
	if isPodSecurityPolicy(err.Error()) {
		return "PodSecurityPolicy is on in this cluster: docs/psp.yaml has a policy for this program's pods, and binds it to the service accounts of namespace " +
			nodejob.Namespace
	}
	return fmt.Sprintf("exempt namespace %s from the policy, quota or webhook that refuses it; where that names images, --image and --canary-image choose others",
		nodejob.Namespace)
}

// isPodSecurityPolicy reports whether an error has the words of that admission plugin, which does not name itself in 1.17 (kubernetes,
// plugin/pkg/admission/security/podsecuritypolicy).
func isPodSecurityPolicy(text string) bool {
	return slices.ContainsFunc([]string{"PodSecurityPolicy", "pod security policy", "no providers available to validate pod request"}, func(words string) bool {
		return strings.Contains(text, words)
	})
}

// baselineTimeout bounds the canary before the drain, with the time that the API server is asked again.
const baselineTimeout = 3 * time.Minute

// proveBefore runs the canary on the old runtime while the node serves, so that what fails there is not taken for a fault of the new one: a
// NetworkPolicy that lets nothing through, a cluster without DNS, a webhook that forbids exec. Its errors say nothing of the node.
func (s *session) proveBefore(ctx context.Context) error {
	if err := s.keepClaim(ctx); err != nil {
		return err
	}
	limited, cancel := context.WithTimeoutCause(ctx, baselineTimeout, fmt.Errorf("not done after %s", baselineTimeout))
	defer cancel()
	params := s.canaryParams()
	params.Attempt, params.Known = params.Attempt+"-before", nil
	failed, err := s.runner.Baseline(limited, params, func(text string) { s.tell(Info, "%s", text) })
	if err != nil {
		return fmt.Errorf("canary before the drain: %w", err)
	}
	var names []string
	for _, check := range failed {
		s.tell(Warning, "the canary's check %s fails on %s already, so that it will not count after the cutover: %s", check.Name, s.from, check.Message)
		names = append(names, check.Name)
	}
	s.unproven = nodestate.Names(names)
	return nil
}
