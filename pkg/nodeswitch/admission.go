package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// tryAdmission asks the API server by dry runs whether the cluster lets in what a run needs, before anything is changed: a policy, a quota or a
// webhook should refuse the switch, not a node that is out of service. Phase is that of the Job that is tried; the Jobs of the others differ from it in
// their arguments only.
func (s *verification) tryAdmission(ctx context.Context, phase protocol.Phase) error {
	job, err := nodejob.Job(s.host.params(s.host.spec(phase)))
	if err != nil {
		return err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		s.image, err = s.runner.TryJob(groupCtx, job)
		return err
	})
	if s.needsCanary { // that of a rollback is a warning then
		group.Go(func() error {
			_, err := s.runner.TryPod(groupCtx, "the canary pod", nodejob.Canary(s.canaryParams()))
			return err
		})
	}
	return group.Wait()
}

// Hint is what to do about a pod of this program that is not let in, or whose image cannot be pulled, or "".
func Hint(err error) string {
	if hint := admissionHint(err); hint != "" {
		return hint
	}
	if isImageMissing(err) {
		return "the node has to be able to pull the image: --image names another one, --image-pull-secret a Secret with credentials for it; " +
			"one that was loaded into Docker needs --image-pull-policy Never (docs/registries.md)"
	}
	return ""
}

// isImageMissing reports whether a pod does not start for want of its image.
func isImageMissing(err error) bool {
	var start *nodejob.StartError
	return errors.As(err, &start) && start.Image != ""
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
