package plugin

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rolloutrecord"
)

// rolloutControl is a command that changes what people want of a rollout.
type rolloutControl struct {
	use, short, long, example, done string
	change                          rolloutrecord.Change
}

func newRolloutPauseCommand(f *cli.Factory) *cobra.Command {
	return newRolloutControlCommand(f, rolloutControl{
		use: "pause NAME", short: "Have no other node start", done: "paused", change: rolloutrecord.Pause,
		long: `Pauses a rollout: nodes in flight finish, and no other starts. Its driver waits until the rollout is resumed or aborted. Once the
command has ended, no node starts.`,
		example: `  # Pause a rollout
  kubectl runtime rollout pause switch-x7k2p`,
	})
}

func newRolloutResumeCommand(f *cli.Factory) *cobra.Command {
	return newRolloutControlCommand(f, rolloutControl{
		use: "resume NAME", short: "Let a paused rollout continue", done: "resumed", change: rolloutrecord.Resume,
		long: `Lets a paused rollout continue. A rollout whose driver is gone cannot be resumed by this: run the command again that began it; kubectl
runtime rollout status shows it.`,
		example: `  # Resume a paused rollout
  kubectl runtime rollout resume switch-x7k2p`,
	})
}

func newRolloutAbortCommand(f *cli.Factory) *cobra.Command {
	return newRolloutControlCommand(f, rolloutControl{
		use: "abort NAME", short: "End a rollout after the nodes in flight", done: "aborted", change: rolloutrecord.Abort,
		long: `Aborts a rollout: nodes in flight finish, no other starts, and the driver ends then. That cannot be undone, but the command that began
the rollout can be run again.`,
		example: `  # Abort a rollout
  kubectl runtime rollout abort switch-x7k2p`,
	})
}

func newRolloutControlCommand(f *cli.Factory, c rolloutControl) *cobra.Command {
	return &cobra.Command{
		Use:                   c.use,
		Short:                 c.short,
		Long:                  c.long,
		Example:               c.example,
		DisableFlagsInUseLine: true,
		Args:                  cobra.ExactArgs(1),
		ValidArgsFunction:     completeRollouts(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := rolloutrecord.ParseName(args[0])
			if err != nil {
				return err
			}
			return controlRollout(cmd.Context(), f, name, c)
		},
	}
}

func controlRollout(ctx context.Context, f *cli.Factory, name string, c rolloutControl) error {
	client, err := f.Clientset()
	if err != nil {
		return err
	}
	store := rollouts(f, client)
	e, err := store.Control(ctx, name, rolloutrecord.Person(holder()), c.change)
	if rolloutrecord.IsRefusal(err) {
		exit := cli.Exitf(cli.ExitGeneral, "rollout %s cannot be %s: %w", name, c.done, err)
		if e.State.Ended() && e.State != rolloutrecord.State(rolloutrecord.Completed) {
			return exit.WithHint("`%s` resumes it, as a rollout of another name", resumeCommand(f, e))
		}
		return exit
	}
	if err != nil {
		return rolloutError(f, "update", name, err)
	}
	fmt.Fprintf(f.Streams.Out, "rollout/%s %s\n", name, c.done)
	if n := e.Status.Counts.InFlight; n > 0 && c.done != "resumed" {
		fmt.Fprintf(f.Streams.ErrOut, "nodes in flight that finish: %d\n", n)
	}
	return nil
}
