package plugin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rolloutrecord"
)

const rolloutStatusExample = `  # Follow a rollout until it ends
  kubectl runtime rollout status switch-x7k2p

  # Only how far it is now
  kubectl runtime rollout status switch-x7k2p --watch=false`

const rolloutStatusLong = `Follows a rollout until it ends, as kubectl rollout status does, and prints a line whenever it is further. The exit code is 0 if
all its nodes were moved or had nothing to do, 124 if --timeout ran out, else 1. For a rollout whose driver does not report any
more, it says which command resumes it.`

// rolloutLook is how often a rollout is looked at.
const rolloutLook = 2 * time.Second

// rolloutStatusOptions are `kubectl runtime rollout status`.
type rolloutStatusOptions struct {
	factory *cli.Factory
	output  rolloutOutput
	watch   bool
	timeout time.Duration
}

func newRolloutStatusCommand(f *cli.Factory) *cobra.Command {
	o := &rolloutStatusOptions{factory: f}
	cmd := &cobra.Command{
		Use:                   "status NAME",
		Short:                 "Follow a rollout until it ends",
		Long:                  rolloutStatusLong,
		Example:               rolloutStatusExample,
		DisableFlagsInUseLine: true,
		Args:                  cobra.ExactArgs(1),
		ValidArgsFunction:     completeRollouts(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := rolloutrecord.ParseName(args[0])
			if err != nil {
				return err
			}
			if o.timeout < 0 {
				return errors.New("--timeout cannot be negative")
			}
			return o.run(cmd.Context(), name)
		},
	}
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", true, "Follow the rollout until it ends; an object of -o is printed once")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 0, "How long to follow it; zero means until it ends")
	o.output.addFlag(cmd)
	return cmd
}

func (o *rolloutStatusOptions) run(ctx context.Context, name string) error {
	client, err := o.factory.Clientset()
	if err != nil {
		return err
	}
	store := rollouts(o.factory, client)
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, cli.Exitf(cli.ExitTimeout, "rollout %s has not ended after %s", name, o.timeout))
		defer cancel()
	}
	for last := ""; ; {
		e, err := store.Get(ctx, name)
		switch {
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return rolloutError(o.factory, "get", name, err)
		case !o.output.isForPeople():
			return o.output.print(o.factory.Streams.Out, []v1alpha1.Rollout{e.Object()}, false)
		}
		if text := e.Sentence(); text != last {
			last = text
			fmt.Fprintln(o.factory.Streams.Out, text)
		}
		if e.State.Ended() {
			return o.ended(e)
		}
		if !o.watch {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-o.factory.Clock.After(rolloutLook):
		}
	}
}

// ended is the error of a rollout that has ended.
func (o *rolloutStatusOptions) ended(e *rolloutrecord.Entry) error {
	errOut := o.factory.Streams.ErrOut
	for _, failure := range e.Status.Failures {
		fmt.Fprintf(errOut, "node %s: %s: %s\n", failure.Node, failure.Result, failure.Reason)
	}
	if e.State == rolloutrecord.State(rolloutrecord.Completed) {
		return nil
	}
	return cli.Exitf(cli.ExitGeneral, "rollout %s: %s", e.Name, e.Conclusion()).WithHint("`%s` resumes it, as a rollout of another name", resumeCommand(o.factory, e))
}
