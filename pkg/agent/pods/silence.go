package pods

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// Silence is how long containerd may answer nothing: longer than a restart of its takes, and far less than the cutover may take,
// whose rest is for the undoing.
const Silence = 45 * time.Second

// WhileAnswering does what may wait for a containerd that hangs: when that has been silent too long, that is the failure.
func WhileAnswering(ctx context.Context, h *node.Host, found facts.Found, do func(ctx context.Context) error) error {
	ask := func(ctx context.Context) error {
		return cri.With(ctx, found.Facts.NewEndpoint, func(*cri.Client) error { return nil })
	}
	silent, err := watched(ctx, ask, Silence, do)
	if silent {
		err = &host.UnitError{Unit: node.ContainerdUnit, Err: err, Log: h.Systemd.Log(ctx, node.ContainerdUnit)}
	}
	return err
}

// watched ends do when ask has not succeeded for as long as patience, and then returns true and what ask said last.
func watched(parent context.Context, ask func(context.Context) error, patience time.Duration, do func(context.Context) error) (silent bool, err error) {
	ctx, cancel := context.WithCancelCause(parent)
	var watch sync.WaitGroup
	watch.Add(1)
	go func() {
		defer watch.Done()
		pause := time.NewTicker(patience / 20)
		defer pause.Stop()
		last := time.Now()
		for {
			err := host.Within(ctx, patience/3, ask)
			switch {
			case ctx.Err() != nil:
				return
			case err == nil:
				last = time.Now()
			case time.Since(last) >= patience:
				cancel(fmt.Errorf("containerd has not answered for %s: %w", patience, err))
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-pause.C:
			}
		}
	}()
	err = do(ctx)
	silent = err != nil && parent.Err() == nil && ctx.Err() != nil
	if silent {
		err = context.Cause(ctx)
	}
	cancel(nil)
	watch.Wait()
	return silent, err
}
