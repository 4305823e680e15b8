package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

var server apiserver.Shared

func TestMain(m *testing.M) { os.Exit(server.Main(m)) }

// user is somebody with a stock kubectl and the plugin on the PATH.
type user struct {
	kubectl string
	env     []string
}

func newUser(t *testing.T, s *apiserver.Server) user {
	t.Helper()
	bin := t.TempDir()
	plugin := filepath.Join(bin, "kubectl-runtime")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-X main.version=v9.8.7", "-o", plugin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := os.Symlink(plugin, filepath.Join(bin, "kubectl_complete-runtime")); err != nil {
		t.Fatal(err)
	}
	return user{
		kubectl: s.Kubectl(t),
		env: append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"),
			"KUBECONFIG="+apiserver.Kubeconfig(t, s.Admin()), "HOME="+t.TempDir()),
	}
}

func (u user) command(ctx context.Context, args ...string) (cmd *exec.Cmd, out, errOut *bytes.Buffer) {
	cmd = exec.CommandContext(ctx, u.kubectl, args...)
	out, errOut = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Env, cmd.Stdout, cmd.Stderr = u.env, out, errOut
	return cmd, out, errOut
}

func code(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

// TestThroughKubectl runs the built program as a user does: `kubectl runtime …`.
func TestThroughKubectl(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("node-1", "docker://20.10.24+dfsg1", "v1.23.17"), apiserver.Node("node-2", "containerd://1.6.20~ds1", "v1.23.17"),
		apiserver.Node("node-3", "docker://20.10.24", "v1.23.17", func(n *corev1.Node) { n.Spec.Unschedulable = true }))
	u := newUser(t, s)

	for _, test := range []struct {
		name        string
		args        []string
		code        int
		out, errOut string
	}{
		{"status", []string{"runtime", "status"}, 0, "node-1   Ready", "3 nodes: 2 docker, 1 containerd"},
		{"kubectl's flags", []string{"runtime", "status", "--context", "test", "-o", "name", "--request-timeout=30s"}, 0, "node/node-3\n", ""},
		{"unknown node", []string{"runtime", "status", "nowhere"}, 1, "", `error: node "nowhere" not found`},
		{"unknown command", []string{"runtime", "stauts"}, 1, "", `unknown command "stauts" for "kubectl runtime"`},
		{"version", []string{"runtime", "version"}, 0, "kubectl-runtime v9.8.7 (client-go v0.", ""},
		{"help", []string{"runtime", "--help"}, 0, "kubectl runtime [command]", ""},
		{"requests shown", []string{"runtime", "status", "-v=6", "node-1"}, 0, "", "/api/v1/nodes/node-1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd, out, errOut := u.command(t.Context(), test.args...)
			if got := code(t, cmd.Run()); got != test.code {
				t.Errorf("exit code %d, want %d", got, test.code)
			}
			if !strings.Contains(out.String(), test.out) || !strings.Contains(errOut.String(), test.errOut) {
				t.Errorf("stdout:\n%s\nstderr:\n%s\nwant %q and %q", out, errOut, test.out, test.errOut)
			}
		})
	}

	t.Run("completion", func(t *testing.T) {
		cmd, out, errOut := u.command(t.Context(), "__complete", "runtime", "status", "node-1", "node-")
		if got := code(t, cmd.Run()); got != 0 {
			t.Fatalf("exit code %d\n%s", got, errOut)
		}
		lines := strings.Fields(out.String())
		if !slices.Contains(lines, "node-2") || !slices.Contains(lines, "node-3") || slices.Contains(lines, "node-1") {
			t.Errorf("offered:\n%s", out)
		}
	})

	t.Run("interrupt", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd, _, errOut := u.command(ctx, "runtime", "status", "-w")
		stdout, writer, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdout.Close()
		cmd.Stdout = writer
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = writer.Close()
		// The first output says that the program is up; kubectl has become the plugin by then, through exec.
		if _, err := stdout.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if got := code(t, cmd.Wait()); got != 130 {
			t.Errorf("exit code %d", got)
		}
		if errOut.Len() != 0 {
			t.Errorf("stderr: %s", errOut)
		}
	})
}
