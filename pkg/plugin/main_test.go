package plugin

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

var (
	server apiserver.Shared
	update = flag.Bool("update", false, "rewrite the golden files")
)

func TestMain(m *testing.M) { os.Exit(server.Main(m)) }

// result is what a call printed and how it ended.
type result struct {
	out, errOut string
	code        int
}

// call runs the program in this process, from its arguments to its exit code.
func call(ctx context.Context, args ...string) result {
	return callAs(ctx, "kubectl-runtime", args...)
}

func callAs(ctx context.Context, name string, args ...string) result {
	var out, errOut syncBuffer
	code := Run(ctx, Invocation{
		Name: name, Args: args, Version: "v0.0.0-test", ClientGo: "v0.37.2",
		Streams: genericiooptions.IOStreams{In: &bytes.Buffer{}, Out: &out, ErrOut: &errOut},
	})
	return result{out.String(), errOut.String(), code}
}

// syncBuffer can be read while a command writes to it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// golden compares got with a file below testdata; -update writes the file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run the test with -update and look at the diff", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}
