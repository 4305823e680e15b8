package nodeswitch

import (
	"cmp"
	"context"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// hostWork is what the host is asked to do, by Jobs of the agent.
type hostWork struct{ *session }

// spec is what the agent is asked to do.
func (s *hostWork) spec(phase protocol.Phase) protocol.Spec {
	return protocol.Spec{
		Version: protocol.Version, Run: s.run, Node: s.name, Phase: phase, Image: cmp.Or(s.image, s.options.Image),
		CutoverSeconds: max(1, int(s.options.CutoverTimeout/time.Second)), KeepDocker: s.options.KeepDocker, Images: s.images,
		ImageSet: s.options.ImageSet, VerifyImages: s.options.VerifyImages, ContainerdArchive: s.options.ContainerdArchive,
		ContainerdArchiveSHA256: s.options.ContainerdArchiveSHA256,
	}
}

// ensureJob has the phase's Job created.
func (s *hostWork) ensureJob(ctx context.Context, spec protocol.Spec) error {
	return s.ensure(ctx, s.params(spec))
}

// params are those of a phase's Job.
func (s *hostWork) params(spec protocol.Spec) nodejob.Params {
	return nodejob.Params{Spec: spec, PullPolicy: s.options.PullPolicy, Pod: s.options.Pod, Image: s.options.Image}
}

func (s *hostWork) ensure(ctx context.Context, params nodejob.Params) error {
	job, err := nodejob.Job(params)
	if err != nil {
		return err
	}
	if err := s.keepClaim(ctx); err != nil {
		return err
	}
	return s.runner.Ensure(ctx, job)
}

// remove deletes the node's Jobs and canaries, or only those of some phases.
func (s *hostWork) remove(ctx context.Context, phases ...protocol.Phase) error {
	return s.retry(ctx, func() error {
		if err := s.held.Keep(ctx); err != nil {
			return err
		}
		return s.runner.Remove(ctx, s.name, phases...)
	})
}

// removeJob deletes one Job of the run.
func (s *hostWork) removeJob(ctx context.Context, phase protocol.Phase) error {
	return s.retry(ctx, func() error {
		if err := s.held.Keep(ctx); err != nil {
			return err
		}
		return s.runner.RemoveJob(ctx, s.spec(phase))
	})
}
