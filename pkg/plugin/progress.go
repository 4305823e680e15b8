package plugin

import (
	"sync"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/render"
)

// lazyProgress starts a Progress with the first update, and a new one after Close.
type lazyProgress struct {
	start func() *render.Progress

	mu      sync.Mutex
	current *render.Progress
	last    nodeswitch.Update
}

func (p *lazyProgress) Observe(update nodeswitch.Update) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		p.current = p.start()
	}
	p.last = update
	p.current.Observe(update)
}

// interrupted confirms the signal: the current work can take a while to end. Without it, people press Ctrl-C again.
func (p *lazyProgress) interrupted() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != nil {
		p.current.Observe(nodeswitch.Update{
			Node: p.last.Node, Stage: p.last.Stage, Kind: nodeswitch.Info, Text: "interrupted: cleaning up; press Ctrl-C again to exit at once",
		})
	}
}

// pause has something else written where the live line is.
func (p *lazyProgress) pause(write func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		write()
		return
	}
	p.current.Pause(write)
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
