package plugin

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/cli-runtime/pkg/genericiooptions"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
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

// TestWayBack: the rollback that a switch names gets the switch's flags on the agent's pods, and no others. It has each of them.
func TestWayBack(t *testing.T) {
	o := runOptions{flags: []string{
		"--image=registry.example/agent:1", "--image-pull-secret=a,b", "--canary-image=registry.example/canary:1", "--yes=true", "--force=true", "--keep-docker=true",
	}}
	got, want := o.agentFlags(), []string{"--image=registry.example/agent:1", "--image-pull-secret=a,b", "--canary-image=registry.example/canary:1"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := NewRollbackCommand(&cli.Factory{}).ParseFlags(got); err != nil {
		t.Errorf("rollback %q: %v", got, err)
	}
}

// TestEveryCommandHasItsFile: a command of the help is found from its name.
func TestEveryCommandHasItsFile(t *testing.T) {
	root := NewRootCommand(cli.NewFactory(genericiooptions.NewTestIOStreamsDiscard(), "test"))
	for _, command := range root.Commands() {
		name := command.Name()
		file, err := os.ReadFile(name + ".go")
		if errors.Is(err, fs.ErrNotExist) {
			file, err = os.ReadFile(filepath.Join(name, name+".go"))
		}
		if err != nil {
			t.Errorf("%s has no file of its name: %v", name, err)
		} else if !regexp.MustCompile(`Use: +"` + name + `\b`).Match(file) {
			t.Errorf("the file of %s does not make that command", name)
		}
	}
	if len(root.Commands()) < 6 {
		t.Errorf("only %d commands", len(root.Commands()))
	}
}
