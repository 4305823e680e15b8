package plugin

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/plugin/status"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// countRequests has factory's clients note what they ask for; the function returns it.
func countRequests(factory *cli.Factory) func() []string {
	var mu sync.Mutex
	var asked []string
	factory.Flags.WrapConfigFn = func(config *rest.Config) *rest.Config {
		config.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				mu.Lock()
				asked = append(asked, r.Method+" "+r.URL.RequestURI())
				mu.Unlock()
				return next.RoundTrip(r)
			})
		})
		return config
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(asked)
	}
}

func TestCompletion(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("comp-1", "docker://20.10.24", "v1.23.17"), apiserver.Node("comp-2", "docker://20.10.24", "v1.23.17"),
		apiserver.Node("other", "docker://20.10.24", "v1.23.17"))
	admin := apiserver.Kubeconfig(t, s.Admin())
	for _, test := range []struct {
		name    string
		args    []string
		want    []string
		without []string
	}{
		{"commands", []string{""}, []string{"status", "version"}, []string{"completion"}},
		{"nodes", []string{"status", "--kubeconfig", admin, "comp"}, []string{"comp-1", "comp-2", ":4"}, []string{"other"}},
		{"not twice", []string{"status", "--kubeconfig", admin, "comp-1", ""}, []string{"comp-2", "other"}, []string{"comp-1"}},
		{"formats", []string{"status", "-o", ""}, []string{"json", "wide", "custom-columns"}, nil},
		{"contexts", []string{"--kubeconfig", admin, "--context", ""}, []string{"test"}, nil},
		{"server is away", []string{"status", "--kubeconfig", admin, "--server", "https://127.0.0.1:1", ""}, []string{":4"}, []string{"comp-1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := callAs(t.Context(), "/usr/local/bin/kubectl_complete-runtime", test.args...)
			var lines []string
			for line := range strings.Lines(got.out) {
				word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
				lines = append(lines, word)
			}
			for _, want := range test.want {
				if !slices.Contains(lines, want) {
					t.Errorf("%q is not offered:\n%s", want, got.out)
				}
			}
			for _, unwanted := range test.without {
				if slices.Contains(lines, unwanted) {
					t.Errorf("%q is offered:\n%s", unwanted, got.out)
				}
			}
			if got.code != 0 {
				t.Errorf("exit code %d", got.code)
			}
		})
	}
}

func TestVersionAsksNobody(t *testing.T) {
	got := call(context.Background(), "version", "--kubeconfig", "/nonexistent")
	if got.code != 0 || !strings.HasPrefix(got.out, "kubectl-runtime v0.0.0-test (client-go v0.") {
		t.Errorf("exit code %d, %q, %q", got.code, got.out, got.errOut)
	}
}

// TestStatusWatchOutlivesTheServer cuts the watch and then every connection for a while: the watch continues where it was.
func TestStatusWatchOutlivesTheServer(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("cut-1", "docker://20.10.24", "v1.23.17"))
	admin := apiserver.Kubeconfig(t, s.Admin())

	var out, errOut syncBuffer
	factory := cli.NewFactory(genericiooptions.IOStreams{Out: &out, ErrOut: &errOut}, "test")
	*factory.Flags.KubeConfig = admin
	var mu sync.Mutex
	away := false
	var watching []context.CancelFunc
	factory.Flags.WrapConfigFn = func(config *rest.Config) *rest.Config {
		return apiserver.Transport(config, func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				mu.Lock()
				defer mu.Unlock()
				if away {
					return nil, errors.New("connection refused")
				}
				if r.URL.Query().Get("watch") != "" {
					ctx, cancel := context.WithCancel(r.Context())
					watching = append(watching, cancel)
					r = r.WithContext(ctx)
				}
				return next.RoundTrip(r)
			})
		})
	}
	setAway := func(is bool) {
		mu.Lock()
		defer mu.Unlock()
		away = is
		for _, cancel := range watching {
			cancel()
		}
		watching = nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		cmd := status.NewCommand(factory)
		cmd.SetArgs([]string{"-w", "cut-1"})
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		ended <- cmd.ExecuteContext(ctx)
	}()
	wait := func(what string, done func() bool) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for !done() {
			select {
			case err := <-ended:
				t.Fatalf("ended with %v before %s:\n%s%s", err, what, out.String(), errOut.String())
			case <-deadline:
				t.Fatalf("no %s:\n%s%s", what, out.String(), errOut.String())
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	isWatching := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(watching) > 0
	}
	wait("watch", isWatching)
	setAway(true)
	wait("report of the outage", func() bool { return strings.Contains(errOut.String(), "asking again in") })
	patch := []byte(`{"metadata":{"annotations":{"kubectl-runtime.dev/phase":"cutover"}}}`)
	if _, err := s.Client().CoreV1().Nodes().Patch(t.Context(), "cut-1", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	setAway(false)
	wait("change that was made meanwhile", func() bool { return strings.Contains(out.String(), "cutover") })
	if n := strings.Count(out.String(), "cut-1"); n != 2 {
		t.Errorf("the node is printed %d times:\n%s", n, out.String())
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}
