package plugin

import (
	"cmp"
	"fmt"
	goruntime "runtime"

	"github.com/spf13/cobra"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
)

// NewVersionCommand is `kubectl runtime version`. It asks no server.
func NewVersionCommand(f *cli.Factory) *cobra.Command {
	return &cobra.Command{
		Use:                   "version",
		Short:                 "Print the version of this plugin",
		DisableFlagsInUseLine: true,
		Args:                  cobra.NoArgs,
		ValidArgsFunction:     cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(f.Streams.Out, "kubectl-runtime %s (client-go %s, %s, %s/%s)\n",
				f.Version, cmp.Or(f.ClientGo, "unknown"), goruntime.Version(), goruntime.GOOS, goruntime.GOARCH)
			return err
		},
	}
}
