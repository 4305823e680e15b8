package plugin

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// TestTooOldServer: an API server that is older than all that are supported is refused before anything is changed. A real one says that it is.
func TestTooOldServer(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("n1", "docker://18.9.9", "v1.16.15"))
	for name, command := range map[string]func(*cli.Factory) *cobra.Command{"plan": NewPlanCommand, "switch": NewSwitchCommand, "rollback": NewRollbackCommand} {
		t.Run(name, func(t *testing.T) {
			factory := cli.NewFactory(genericiooptions.NewTestIOStreamsDiscard(), "v0.0.0-test")
			*factory.Flags.KubeConfig = apiserver.Kubeconfig(t, s.Admin())
			factory.Flags.WrapConfigFn = func(config *rest.Config) *rest.Config {
				return apiserver.Transport(config, func(next http.RoundTripper) http.RoundTripper {
					return roundTripper(func(r *http.Request) (*http.Response, error) {
						answer, err := next.RoundTrip(r)
						if err == nil && r.URL.Path == "/version" {
							_ = answer.Body.Close()
							answer.Body = io.NopCloser(strings.NewReader(`{"gitVersion":"v1.16.15"}`))
						}
						return answer, err
					})
				})
			}
			cmd := command(factory)
			cmd.SetArgs([]string{"n1"})
			if name != "plan" {
				cmd.SetArgs([]string{"n1", "--yes"})
			}
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			err := cmd.ExecuteContext(t.Context())
			var exit *cli.ExitError
			if !errors.As(err, &exit) || exit.Code != cli.ExitRefused || !strings.Contains(err.Error(), "Kubernetes v1.16.15: the oldest that is supported is 1.17") ||
				!strings.Contains(exit.Hint, "nothing was changed") {
				t.Errorf("%v", err)
			}
		})
	}
	untouched(t, s)
}
