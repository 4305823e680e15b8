package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// prover runs this session's canaries.
func (s *verification) prover() nodejob.Prover { return nodejob.Prover{Runner: s.runner} }

// baselineTimeout bounds the canary before the drain, with the time that the API server is asked again.
const baselineTimeout = 3 * time.Minute

// proveBefore runs the canary on the old runtime while the node serves, so that what fails there is not taken for a fault of the new one: a
// NetworkPolicy that lets nothing through, a cluster without DNS, a webhook that forbids exec. Its errors say nothing of the node.
func (s *verification) proveBefore(ctx context.Context) error {
	if err := s.keepClaim(ctx); err != nil {
		return err
	}
	limited, cancel := context.WithTimeoutCause(ctx, baselineTimeout, fmt.Errorf("not done after %s", baselineTimeout))
	defer cancel()
	params := s.canaryParams()
	params.Attempt, params.Known = params.Attempt+"-before", nil
	failed, err := s.prover().Baseline(limited, params, func(text string) { s.tell(Info, "%s", text) })
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

// canaryRequest bounds the request that makes the canary's pod ahead.
const canaryRequest = 5 * time.Second

func (s *verification) canaryParams() nodejob.CanaryParams {
	return nodejob.CanaryParams{
		Node: s.name, Run: s.run, Attempt: s.canary, Image: s.options.CanaryImage, PullPolicy: s.options.PullPolicy, Pod: s.options.Pod,
		Started: s.canaryStarted, Known: s.unproven,
	}
}

// canaryAhead makes the canary's pod as soon as the node reports the new runtime: the kubelet then starts it with the first pods, while the
// host still waits for one of them and for the node to be Ready. What it proves counts only after the host's own result, which checkCanary waits for;
// a host that undoes the cutover stops the canary with the other pods. The pod that cannot be made is made by checkCanary. The returned
// function ends it and has to be called.
func (s *verification) canaryAhead(ctx context.Context) (end func()) {
	if slices.Contains(s.unproven, nodejob.CheckPod) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.watch.Await(ctx, func() (bool, error) {
			node, err := s.watch.Node(ctx)
			if err != nil || inventory.FromNode(node).Runtime != s.target || heartbeat(node).Equal(s.lastHeartbeat) {
				return ctx.Err() != nil, err
			}
			// Not cut off in the middle: whether there is a pod should be known.
			request, done := context.WithTimeout(context.WithoutCancel(ctx), canaryRequest)
			defer done()
			err = s.held.Keep(request)
			if err == nil {
				err = s.prover().StartCanary(request, s.canaryParams())
			}
			s.canaryStarted = err == nil
			return true, err
		})
	}()
	return func() {
		cancel()
		<-ended
	}
}

func (s *verification) checkCanary(ctx context.Context) error {
	if err := s.keepClaim(ctx); err != nil {
		return &nodejob.OutageError{Cause: err}
	}
	err := s.prover().Prove(ctx, s.canaryParams(), func(text string) { s.tell(Warning, "%s", text) })
	var refused *nodejob.AdmissionError
	switch {
	case errors.As(err, &refused):
		s.tell(Warning, "the canary pod was not run, which does not count against the node: %s", err)
		return nil
	case err == nil && !slices.Contains(s.unproven, nodejob.CheckPod):
		s.tell(Info, "the canary pod has passed its checks")
	}
	return err
}
