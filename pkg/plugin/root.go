// Package plugin holds the commands of `kubectl runtime`, one file each: flags, arguments, output, exit codes. What they do is
// in the packages below it (inventory, rollout, render); nothing else knows cobra. cmd/kubectl-runtime calls Run.
package plugin

import (
	"context"
	"errors"
	"flag"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/klog/v2"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/plugin/status"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// completionPrefix begins the name under which kubectl calls a plugin for completion: kubectl_complete-runtime
// (k8s.io/kubectl/pkg/cmd/plugin/plugin_completion.go).
const completionPrefix = "kubectl_complete-"

// Invocation is one call of the program.
type Invocation struct {
	// Name is how it was called, os.Args[0]; kubectl_complete-runtime asks for completions.
	Name string
	// Args are the arguments without Name.
	Args    []string
	Streams genericiooptions.IOStreams
	// Version is the release that the binary was built from.
	Version string
	// AgentDigest is that of the agent's image of this release, "sha256:…"; empty if it is not known.
	AgentDigest string
	// ClientGo is the version of k8s.io/client-go in the binary.
	ClientGo string
}

// Run carries out one call and returns the exit code. Errors are printed to Streams.ErrOut. Ctx ends on the first signal, with
// a *cli.SignalError as its cause.
func Run(ctx context.Context, call Invocation) int {
	// All that is printed passes here: node names and reasons, kubectl's printers, errors of requests that a kubelet answered.
	call.Streams.Out, call.Streams.ErrOut = untrusted.NewWriter(call.Streams.Out), untrusted.NewWriter(call.Streams.ErrOut)
	factory := cli.NewFactory(call.Streams, call.Version)
	factory.AgentDigest, factory.ClientGo = call.AgentDigest, call.ClientGo
	root := NewRootCommand(factory) //nolint:contextcheck // completion takes the context of its own command when it runs
	args := call.Args
	if strings.HasPrefix(filepath.Base(call.Name), completionPrefix) {
		args = append([]string{cobra.ShellCompRequestCmd}, args...)
	}
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if errors.Is(err, context.Canceled) {
		var signal *cli.SignalError
		if errors.As(context.Cause(ctx), &signal) && !isExitError(err) {
			err = signal
		}
	}
	if err != nil {
		cli.PrintError(call.Streams.ErrOut, err)
	}
	return cli.ExitCode(ctx, err)
}

func isExitError(err error) bool {
	var exit *cli.ExitError
	return errors.As(err, &exit)
}

// NewRootCommand is `kubectl runtime` with all its commands.
func NewRootCommand(f *cli.Factory) *cobra.Command {
	root := &cobra.Command{
		Use:   "kubectl-runtime",
		Short: "Move nodes from Docker Engine to containerd",
		Long: `Moves Kubernetes nodes from Docker Engine (dockershim or cri-dockerd) to containerd, in place and from inside the
cluster. The new runtime is proven while the node still serves on the old one, and a node always ends on one working
runtime.`,
		Annotations:       map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl runtime"},
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              cobra.NoArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(f.Streams.In)
	root.SetOut(f.Streams.Out)
	root.SetErr(f.Streams.ErrOut)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return (&cli.ExitError{Err: err}).WithHint("`%s --help` lists the flags", cmd.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	f.AddFlags(root.PersistentFlags())
	addLogFlags(root, f.Streams.ErrOut)
	cli.RegisterKubeconfigCompletions(root, f)

	root.AddCommand(status.NewCommand(f), NewPlanCommand(f), NewSwitchCommand(f), NewRollbackCommand(f), NewRolloutCommand(f), NewUninstallCommand(f), NewVersionCommand(f))
	return root
}

// addLogFlags adds kubectl's -v and --vmodule, which show on w the requests that client-go makes.
func addLogFlags(root *cobra.Command, w io.Writer) {
	all := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(all)
	_ = errors.Join(all.Set("logtostderr", "false"), all.Set("stderrthreshold", "FATAL")) // else it writes to os.Stderr
	klog.SetOutput(w)
	for _, name := range []string{"v", "vmodule"} {
		root.PersistentFlags().AddGoFlag(all.Lookup(name))
	}
}
