package rollout

import (
	"context"
	"errors"
	"strings"
	"testing"

	"k8s.io/client-go/kubernetes"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
)

// TestCanaryBaseline has a cluster that gives pods no volume to write to on either runtime: that is noted, also by a run that is resumed.
func TestCanaryBaseline(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := newHollow(t, s, "baseline")
	h.before[1] = nodejob.CanaryCheck{Name: "volume", Message: "read-only"}
	h.checks = h.before
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	observer := &recorder{onStage: func(stage Stage) {
		if stage == StageVerify {
			cancel(errors.New("interrupted: test"))
		}
	}}
	_, err := newRollout(s, observer).Switch(ctx, "baseline")
	_ = wantError(t, err, OutcomeInterrupted, "interrupted: test")
	if !observer.said("the canary pod fails a check on docker, which will not be held against the new runtime: volume: read-only") {
		t.Error("it was not said that the check fails already")
	}
	report, err := newRollout(s, observer).Switch(t.Context(), "baseline")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(report.Warnings, "; "), "the canary pod fails a check, as it did before the switch: volume: read-only") {
		t.Errorf("warnings %q", report.Warnings)
	}
	nothingLeft(t, s, "baseline")
}

// TestCanaryIsRefused has a server that takes no canary: after the cutover that would disprove a good node.
func TestCanaryIsRefused(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := newHollow(t, s, "no-canary")
	if err := newRollout(s, &recorder{}).ensureNamespace(t.Context()); err != nil {
		t.Fatal(err)
	}
	config := s.User(t, "no-pods", rules("create pods -n kubectl-runtime")...)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	r := newRollout(s, &recorder{})
	r.client, r.runner.Client, r.runner.Config = client, client, config
	_, err = r.Switch(t.Context(), "no-canary")
	_ = wantError(t, err, OutcomeRefused, `prepare: create canary pod: pods is forbidden: User "no-pods" cannot create resource "pods"`)
	if state := getNode(t, s, "no-canary").Annotations[inventory.AnnotationPhase]; len(h.phases) > 0 || state != string(inventory.StateFailed) {
		t.Errorf("phases %v, state %q", h.phases, state)
	}
	nothingLeft(t, s, "no-canary")
}
