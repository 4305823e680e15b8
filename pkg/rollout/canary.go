package rollout

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
)

// canaryRequest bounds the request that makes the canary's pod ahead.
const canaryRequest = 5 * time.Second

func (s *session) canaryParams() nodejob.CanaryParams {
	return nodejob.CanaryParams{
		Node: s.name, Run: s.run, Attempt: s.canary, Image: s.options.CanaryImage, PullPolicy: s.options.PullPolicy, Pod: s.options.Pod,
		Started: s.canaryStarted, Known: s.unproven,
	}
}

// canaryAhead makes the canary's pod as soon as the node reports the new runtime: the kubelet then starts it with the first pods, while the
// host still waits for one of them and for the node to be Ready. What it proves counts only after the host's own result, which checkCanary waits for;
// a host that undoes the cutover stops the canary with the other pods. The pod that cannot be made is made by checkCanary. The returned
// function ends it and has to be called.
func (s *session) canaryAhead(ctx context.Context) (end func()) {
	if slices.Contains(s.unproven, nodejob.CheckPod) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.watch.Await(ctx, func() (bool, error) {
			node, err := s.watch.Node(ctx)
			if err != nil || inventory.FromNode(node).Runtime != s.target || heartbeat(node).Equal(s.beat) {
				return ctx.Err() != nil, err
			}
			// Not cut off in the middle: whether there is a pod should be known.
			request, done := context.WithTimeout(context.WithoutCancel(ctx), canaryRequest)
			defer done()
			err = s.held.Keep(request)
			if err == nil {
				err = s.runner.StartCanary(request, s.canaryParams())
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

func (s *session) checkCanary(ctx context.Context) error {
	if err := s.keepClaim(ctx); err != nil {
		return &nodejob.OutageError{Cause: err}
	}
	err := s.runner.Prove(ctx, s.canaryParams(), func(text string) { s.tell(Warning, "%s", text) })
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
