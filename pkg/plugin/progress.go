package plugin

import (
	"sync"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/render"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rollout"
)

// lazyProgress starts a Progress with the first update, and a new one after Close.
type lazyProgress struct {
	start func() *render.Progress

	mu      sync.Mutex
	current *render.Progress
	last    rollout.Update
}

func (p *lazyProgress) Observe(update rollout.Update) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		p.current = p.start()
	}
	p.last = update
	p.current.Observe(update)
}

// interrupted says that the signal was heard: to end what is under way can take a while. Without it, people press Ctrl-C again.
func (p *lazyProgress) interrupted() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != nil {
		p.current.Observe(rollout.Update{
			Node: p.last.Node, Stage: p.last.Stage, Kind: rollout.Info, Text: "interrupted: leaving the node in order; Ctrl-C once more exits at once",
		})
	}
}

// Close ends the live line, so that something else can be written.
func (p *lazyProgress) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != nil {
		p.current.Close()
		p.current = nil
	}
}
