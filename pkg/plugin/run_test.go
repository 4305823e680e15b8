package plugin

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/render"
)

// TestInterrupted: the first Ctrl-C is answered at once, where the work stands, and not after its end.
func TestInterrupted(t *testing.T) {
	var out bytes.Buffer
	p := &lazyProgress{start: func() *render.Progress {
		return render.NewProgress(&out, render.Style{}, clocktesting.NewFakeClock(time.Now()))
	}}
	p.interrupted()
	if out.Len() > 0 {
		t.Errorf("before anything began: %q", out.String())
	}
	p.Observe(nodeswitch.Update{Node: "node-1", Stage: nodeswitch.StageDrain, Kind: nodeswitch.StageBegun})
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan struct{})
	context.AfterFunc(ctx, func() {
		p.interrupted()
		close(heard)
	})
	cancel()
	<-heard
	p.Close()
	p.interrupted()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if last := lines[len(lines)-1]; len(lines) != 2 || !strings.Contains(last, "node-1 drain") || !strings.Contains(last, "Ctrl-C again") {
		t.Errorf("printed\n%s", out.String())
	}
}
