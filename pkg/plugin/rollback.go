package plugin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
)

// rollbackTimeout is how long the host's work is waited for, besides what the rollout allows for the pod. The host itself has no
// deadline: it has nothing to go back to.
const rollbackTimeout = 10 * time.Minute

// RollbackOptions are `kubectl runtime rollback`.
type RollbackOptions struct{ runOptions }

const rollbackLong = `Moves nodes back to Docker Engine and to the files from before their switch: drains the node, lets the host undo by itself
what the switch changed, proves the result with a canary pod, and uncordons. Several nodes are moved as switch does it. It works after a finished
switch until the cleanup, and also ends one that was interrupted, failed, or could not be undone. A node that was cordoned before
stays cordoned. After any interruption, run it again: it resumes the run.

A node on which a check fails afterwards is left cordoned, and is not switched forth again.

The drain's flags are those of kubectl drain. On a node that is not Ready, the drain waits for a pod only 10s beyond its grace
period, unless --skip-wait-for-delete-timeout says otherwise. Where the kubelet does not report, --force tries it nevertheless;
the agent on the node does it without kubelet and cluster: /var/lib/kubectl-runtime/bin/runtime-agent rollback. Where
/var/lib is mounted noexec, the agent is in /usr/local/lib/kubectl-runtime or /opt/kubectl-runtime.`

const rollbackExample = `  # What would be done
  kubectl runtime rollback node-1 --dry-run=client

  # Move a node back to Docker
  kubectl runtime rollback node-1`

// NewRollbackCommand is `kubectl runtime rollback`.
func NewRollbackCommand(f *cli.Factory) *cobra.Command {
	o := &RollbackOptions{runOptions{factory: f}}
	o.rollout.CutoverTimeout = rollbackTimeout
	cmd := &cobra.Command{
		Use:                   "rollback (NODE… | -l SELECTOR)",
		Short:                 "Move nodes back to the runtime and files from before their switch",
		Long:                  rollbackLong,
		Example:               rollbackExample,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cli.CompleteNodes(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.complete(cmd, args); err != nil {
				return err
			}
			if err := o.Validate(); err != nil {
				return err
			}
			return o.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVarP(&o.selection.LabelSelector, "selector", "l", "", "Roll back the nodes with these labels, e.g. pool=blue,!gpu")
	o.addSharedFlags(cmd.Flags())
	o.addOutputFlag(cmd)
	return cmd
}

// Validate judges the flags.
func (o *RollbackOptions) Validate() error {
	switch {
	case len(o.selection.Names) == 0 && o.selection.LabelSelector == "":
		return cli.Exitf(cli.ExitGeneral, "no nodes given").WithHint("name nodes, or use --selector")
	case len(o.selection.Names) > 0 && o.selection.LabelSelector != "":
		return errors.New("node names and --selector cannot be combined: use one of them")
	}
	return o.validate()
}

// Run rolls the nodes back.
func (o *RollbackOptions) Run(ctx context.Context) error {
	return o.run(ctx, move{
		kind: v1alpha1.KindRollbackResult, name: "rollback", question: "Roll back", target: inventory.RuntimeDocker, done: "rolled back to",
		preflight: (*preflight.Checker).Rollback,
		plan:      nodeswitch.PlanRollback,
		do:        (*nodeswitch.Switcher).Rollback,
		would: func(finding preflight.Finding) string {
			state := string(finding.State)
			if finding.State == nodestate.StateDone {
				state = "switched"
			}
			return fmt.Sprintf("rolled back from %s (%s) to docker", finding.Runtime, state)
		},
		wayBack: func(string, string) string { return "" },
	})
}
