package rollout

import (
	"context"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// parkTimeout bounds the start of the cutover's pod ahead: the node is in service, and without it the pod is started later.
const parkTimeout = 15 * time.Second

// park has the cutover's pod started while the node serves, to wait there: what is left to do once the node is drained is to tell it. It also
// waits until the preparation's pod is gone, since a kubelet up to 1.26 makes five requests a second, which the drained pods
// are then waiting for. What goes wrong costs a second later on and no more.
func (s *session) park(ctx context.Context) {
	if !s.runner.MayExec(ctx) {
		return
	}
	spec := s.spec(protocol.PhaseCutover)
	wait, cancel := context.WithTimeout(ctx, s.parkTimeout)
	defer cancel()
	params := s.params(spec)
	params.Wait = true
	err := s.ensure(wait, params)
	if err == nil {
		err = s.watch.Await(wait, func() (bool, error) {
			before, err := s.runner.PhasePod(wait, s.spec(protocol.PhasePrepare))
			if err != nil || before != nil {
				return false, err
			}
			pod, err := s.runner.PhasePod(wait, spec)
			return err == nil && pod != nil && nodejob.HasStarted(pod), err
		})
	}
	s.parked = err == nil
	if err != nil && ctx.Err() == nil {
		_ = s.remove(ctx, protocol.PhaseCutover) // what is left of it is replaced
	}
}

// release tells the pod that waits to go on. begun: the host may have been asked, whether or not that is known; asked: it is.
func (s *session) release(ctx context.Context, spec protocol.Spec) (begun, asked bool) {
	if !s.parked || s.proveClaim(ctx) != nil {
		return false, false
	}
	sent, err := s.runner.Release(ctx, spec)
	if err != nil && ctx.Err() == nil {
		s.tell(Info, "the pod that waits for the cutover cannot be told (%v): another one is started", err)
	}
	return sent, err == nil
}
