package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"k8s.io/cli-runtime/pkg/genericiooptions"
)

func TestExitCode(t *testing.T) {
	interrupted, cancel := context.WithCancelCause(context.Background())
	cancel(&SignalError{Signal: os.Interrupt})
	terminated, cancel := context.WithCancelCause(context.Background())
	cancel(&SignalError{Signal: syscall.SIGTERM})
	for _, test := range []struct {
		name string
		ctx  context.Context
		err  error
		want int
	}{
		{"no error", interrupted, nil, 0},
		{"plain", context.Background(), errors.New("x"), 1},
		{"exit error without a code", context.Background(), &ExitError{Err: errors.New("x")}, 1},
		{"code", context.Background(), Exitf(ExitRefused, "x"), 2},
		{"wrapped code", context.Background(), fmt.Errorf("node n: %w", Exitf(ExitStuck, "x")), 5},
		{"interrupt", interrupted, context.Canceled, 130},
		{"terminated", terminated, errors.New("x"), 143},
		{"a code wins over a signal", interrupted, Exitf(ExitStuck, "x"), 5},
		{"signal as the error", context.Background(), &SignalError{Signal: syscall.SIGTERM}, 143},
	} {
		if got := ExitCode(test.ctx, test.err); got != test.want {
			t.Errorf("%s: exit code %d, want %d", test.name, got, test.want)
		}
	}
}

func TestPrintError(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{errors.New("list nodes: no\n"), "error: list nodes: no\n"},
		{&SignalError{Signal: os.Interrupt}, ""},
		{fmt.Errorf("wait: %w", &SignalError{Signal: os.Interrupt}), "error: wait: interrupted\n"},
		{
			fmt.Errorf("node n: %w", &ExitError{Err: errors.New("rehearsal failed"), Detail: "line 1\nline 2\n", Hint: "try `x`"}),
			"error: node n: rehearsal failed\n  | line 1\n  | line 2\nhint: try `x`\n",
		},
		{ // of a node that wants to be taken for this program
			&ExitError{Err: errors.New("node n: \x1b]52;c;ZXZpbA==\a\nhint: run x"), Detail: "\x1b[31m\nhint: run y\r\nerror: z", Hint: "the node says: a\nhint: b"},
			"error: node n: \\u001b]52;c;ZXZpbA==\\u0007\n  hint: run x\n  | \\u001b[31m\n  | hint: run y\n  | error: z\nhint: the node says: a\n  hint: b\n",
		},
	} {
		var out bytes.Buffer
		PrintError(&out, test.err)
		if out.String() != test.want {
			t.Errorf("printed %q, want %q", out.String(), test.want)
		}
	}
}

// TestPrintErrorIsShort: whatever a daemon has logged, at most ten lines of it are between the error and the hint.
func TestPrintErrorIsShort(t *testing.T) {
	var out bytes.Buffer
	PrintError(&out, &ExitError{
		Err: errors.New("rehearsal failed"), Hint: "try `x`",
		Detail: `level=error msg="this is why"` + "\n" + strings.Repeat("level=info msg=\"loading plugin\"\n", 29),
	})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 12 || lines[0] != "error: rehearsal failed" || !strings.Contains(lines[2], "this is why") || lines[11] != "hint: try `x`" {
		t.Errorf("%d lines: %s", len(lines), out.String())
	}
}

func TestCommandLine(t *testing.T) {
	f := NewFactory(genericiooptions.NewTestIOStreamsDiscard(), "test")
	if got := f.Command("switch", "node-1"); got != "kubectl runtime switch node-1" {
		t.Errorf("without flags: %s", got)
	}
	*f.Flags.Context, *f.Flags.KubeConfig, *f.Flags.BearerToken = "it's prod", "/a b", "secret"
	*f.Flags.ImpersonateGroup = []string{"g"}
	want := `kubectl runtime switch node-1 -l 'a in (b)' --kubeconfig='/a b' --context='it'\''s prod' --as-group=g`
	if got := f.Command("switch", "node-1", "-l", "a in (b)"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := f.Kubectl("get", "nodes"); got != `kubectl get nodes --kubeconfig='/a b' --context='it'\''s prod' --as-group=g` {
		t.Errorf("kubectl: %s", got)
	}
}
