package rollout

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// maxDrains bounds how often a node is drained in one run: something that brings pods back each time is for a person.
const maxDrains = 3

// empty cordons the node, with other annotations in the same request, and removes its pods as kubectl drain does.
func (s *session) empty(ctx context.Context, more nodestate.Set) error {
	options := s.options.Drain
	if s.back != nil && s.back.unready && options.SkipWaitForDeleteTimeoutSeconds == 0 {
		options.SkipWaitForDeleteTimeoutSeconds = deadPodSeconds
	}
	wasCordoned, err := s.node.Cordon(ctx, more)
	if err != nil {
		return err
	}
	if !wasCordoned && s.cordonedAt.IsZero() {
		s.cordonedAt = s.clock.Now()
	}
	if err := drain.New(s.client, options, &drainReport{session: s}, s.clock.Now).Watching(s.watch).Drain(ctx, s.name); err != nil {
		return err
	}
	return s.awaitLeaving(ctx)
}

// keepEmpty looks at the node again right before the host is asked to change the runtime: since its drain, an administrator or a reboot
// manager may have uncordoned it. Pods that came since would be stopped without regard to their PodDisruptionBudgets. Where the node is not as
// the drain left it, it is drained again. A watch may be late, so that node and pods are read as they are now; node is as the API server has
// returned it just now, or nil.
func (s *session) keepEmpty(ctx context.Context, node *corev1.Node) error {
	for drains := 1; ; drains++ {
		why, err := s.whyNotEmpty(ctx, node)
		node = nil
		if err != nil || why == "" {
			return err
		}
		if drains == maxDrains {
			return fmt.Errorf("%s, although it was drained %d times", why, drains)
		}
		s.tell(Info, "%s: draining it again", why)
		if err := s.empty(ctx, nil); err != nil {
			return err
		}
	}
}

// whyNotEmpty says how the node differs from what a drain leaves; empty if it does not.
func (s *session) whyNotEmpty(ctx context.Context, node *corev1.Node) (string, error) {
	if node == nil {
		var err error
		if node, err = s.getNode(ctx, s.name); err != nil {
			return "", err
		}
	}
	if !node.Spec.Unschedulable {
		return "the node was uncordoned after its drain", nil
	}
	var landed []string
	err := s.retry(ctx, func() error {
		pods, err := drain.New(s.client, s.options.Drain, nil, s.clock.Now).Check(ctx, s.name)
		landed = nil
		for i := range pods {
			if pods[i].DeletionTimestamp == nil {
				landed = append(landed, pods[i].Namespace+"/"+pods[i].Name)
			}
		}
		return err
	})
	if err != nil {
		return "", errors.Join(errors.New("look for pods that came to the node after its drain"), err)
	}
	if len(landed) > 0 {
		return "pods came to the node after its drain: " + strings.Join(landed, ", "), nil
	}
	return "", nil
}
