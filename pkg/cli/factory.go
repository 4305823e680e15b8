// Package cli is what every command needs: the way to the cluster with the flags of kubectl, the selection of nodes, errors with an exit code and a hint,
// a question on the terminal, and objects as the printers of kubectl take them. It knows nothing of Docker or containerd.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	goruntime "runtime"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/oldapi"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// Requests per second and in a burst; client-go's own 5 and 10 would slow down a list of thousands of nodes and a fleet.
// They are kubectl's (k8s.io/kubectl/pkg/cmd/cmd.go).
const (
	clientQPS   = 50
	clientBurst = 300
)

// Factory is what every command gets: the way to the cluster, the streams and the clock.
type Factory struct {
	// Flags are kubectl's own global flags.
	Flags   *genericclioptions.ConfigFlags
	Streams genericiooptions.IOStreams
	Clock   clock.WithTicker
	// Version is the plugin's release, as in "v0.1.0"; "dev" for a build that is none.
	Version string
	// AgentDigest is that of the agent's image of this release, "sha256:…"; empty if it is not known.
	AgentDigest string
	// ClientGo is the version of the client library, of which v0.N goes with Kubernetes 1.N; empty if it is not known.
	ClientGo string

	matchServerVersion bool
}

// NewFactory makes a Factory with kubectl's flags at their defaults.
func NewFactory(streams genericiooptions.IOStreams, version string) *Factory {
	return &Factory{
		Flags: genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().
			WithDiscoveryBurst(clientBurst).WithDiscoveryQPS(clientQPS).WithWarningPrinter(streams),
		Streams: streams,
		Clock:   clock.RealClock{},
		Version: version,
	}
}

// AddFlags adds kubectl's global flags.
func (f *Factory) AddFlags(flags *pflag.FlagSet) {
	f.Flags.AddFlags(flags)
	flags.BoolVar(&f.matchServerVersion, "match-server-version", false,
		"Require the server's minor version to be that of the client library")
}

// RESTConfig is the connection that flags and kubeconfig describe. JSON is its content type, since custom and dynamic requests
// need it; Clientset uses protobuf.
func (f *Factory) RESTConfig() (*rest.Config, error) {
	config, err := f.Flags.ToRESTConfig()
	if err != nil {
		return nil, &ExitError{
			Err:  fmt.Errorf("read kubeconfig: %w", err),
			Hint: "check --kubeconfig, --context and $KUBECONFIG; `kubectl config get-contexts` lists what there is",
		}
	}
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = clientQPS, clientBurst
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return boundErrors{next} })
	config.UserAgent = fmt.Sprintf("kubectl-runtime/%s (%s/%s)", f.Version, goruntime.GOOS, goruntime.GOARCH)
	if f.matchServerVersion {
		if err := checkServerVersion(config, f.ClientGo); err != nil {
			return nil, err
		}
	}
	return config, nil
}

// maxErrorBody bounds the answer to a request that failed, in bytes. The client reads all of it, and it may be a kubelet's.
const maxErrorBody = 1 << 20

// boundErrors cuts the answers to requests that failed.
type boundErrors struct{ next http.RoundTripper }

func (b boundErrors) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := b.next.RoundTrip(request)
	if err == nil && response.StatusCode >= http.StatusBadRequest {
		response.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(response.Body, maxErrorBody), response.Body}
	}
	return response, err
}

// Clientset is a typed client. It speaks protobuf: a Node is a third of its JSON then, and quicker to decode.
func (f *Factory) Clientset() (kubernetes.Interface, error) {
	config, err := f.RESTConfig()
	if err != nil {
		return nil, err
	}
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	return client, nil
}

// AgentRepository is where releases put the agent's image.
const AgentRepository = "ghcr.io/kubectl-runtime/agent"

// AgentImage is the agent's image of this release, pinned by its digest where that is known; empty for a build that is no release.
func (f *Factory) AgentImage() string {
	if f.Version == "dev" {
		return ""
	}
	image := AgentRepository + ":" + f.Version
	if f.AgentDigest != "" {
		image += "@" + f.AgentDigest
	}
	return image
}

// Command is a line that the user can paste: `kubectl runtime` with args and with the global flags that said which cluster and
// who. It names no token and no password.
func (f *Factory) Command(args ...string) string {
	return f.commandLine("runtime", args)
}

// Kubectl is like Command, for one of kubectl's own commands.
func (f *Factory) Kubectl(args ...string) string {
	return f.commandLine("", args)
}

func (f *Factory) commandLine(plugin string, args []string) string {
	words := []string{"kubectl"}
	if plugin != "" {
		words = append(words, plugin)
	}
	for _, arg := range args {
		words = append(words, shellQuote(arg))
	}
	for _, flag := range []struct {
		name  string
		value *string
	}{
		{"kubeconfig", f.Flags.KubeConfig},
		{"context", f.Flags.Context},
		{"cluster", f.Flags.ClusterName},
		{"user", f.Flags.AuthInfoName},
		{"server", f.Flags.APIServer},
		{"as", f.Flags.Impersonate},
	} {
		if flag.value != nil && *flag.value != "" {
			words = append(words, "--"+flag.name+"="+shellQuote(*flag.value))
		}
	}
	if f.Flags.ImpersonateGroup != nil {
		for _, group := range *f.Flags.ImpersonateGroup {
			words = append(words, "--as-group="+shellQuote(group))
		}
	}
	return strings.Join(words, " ")
}

// shellQuote quotes what a POSIX shell would not take as one plain word.
func shellQuote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=,@%+"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// CheckServer refuses an API server that is older than all that this program works with.
func (f *Factory) CheckServer(ctx context.Context, client kubernetes.Interface) error {
	err := oldapi.CheckServer(ctx, client)
	var old *oldapi.UnsupportedError
	if errors.As(err, &old) {
		return (&ExitError{Code: ExitRefused, Err: err}).WithHint("nothing was changed; upgrade the control plane first")
	}
	if err != nil {
		return f.Explain("ask for", "the version of the API server", "", err)
	}
	return nil
}

// checkServerVersion compares the server's minor version with the client library's.
func checkServerVersion(config *rest.Config, library string) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	server, err := client.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("get server version: %w", err)
	}
	want, known := version.Parse(library)
	got, readable := version.Parse(server.GitVersion)
	if !known || !readable || got.Minor != want.Minor {
		return fmt.Errorf("match server version: the server is %s, the client library client-go %s: leave out --match-server-version, or use another release",
			server.GitVersion, cmp.Or(library, "unknown"))
	}
	return nil
}
