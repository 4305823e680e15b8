package plugin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
)

// SwitchOptions are `kubectl runtime switch`.
type SwitchOptions struct {
	runOptions
	all bool
}

const switchLong = `Moves nodes from Docker Engine to containerd: prepares and rehearses the new runtime while the node serves, drains it, lets
the host switch by itself, proves the result with a canary pod, and uncordons. What fails is undone. A node that was cordoned
before stays cordoned. After any interruption, run it again: it resumes the run.

Of several nodes, no more than --max-unavailable are unavailable at a time. Nodes that are cordoned or not Ready for other reasons
count, too. The first node moves alone, then one, two, four and so on at a time; nodes of the control plane come last, one at a
time. Each node is judged again right before it starts. The first failure stops new starts, unless --max-failures allows more; a
node that is left out of service always does, and so do three failures of the same kind. What is in flight goes on. kubectl runtime
rollout shows, pauses and aborts it from elsewhere. Nodes that other rollouts of the cluster have in flight count, too.

A node without a containerd that fits its kubelet gets one from its configured package repositories, or from --containerd-archive.

The drain's flags are those of kubectl drain. As there, --timeout bounds the drain alone; --cutover-timeout bounds the cutover.
DaemonSet pods always stay on the node.

Before anything is changed, the checks of plan are run on the nodes' pods and PodDisruptionBudgets: what blocks refuses, warnings are
counted. What the agent finds on the host refuses in the preparation, while the node serves.`

const switchExample = `  # What would be done
  kubectl runtime switch node-1 --dry-run=client

  # Switch a node
  kubectl runtime switch node-1

  # Switch the nodes of a pool, without a question, and let emptyDir data go
  kubectl runtime switch -l pool=blue --yes --delete-emptydir-data

  # Switch all nodes, with a tenth of them unavailable at a time
  kubectl runtime switch --all --max-unavailable=10%`

// NewSwitchCommand is `kubectl runtime switch`.
func NewSwitchCommand(f *cli.Factory) *cobra.Command {
	o := &SwitchOptions{runOptions: runOptions{factory: f}}
	cmd := &cobra.Command{
		Use:                   "switch (NODE… | -l SELECTOR | --all)",
		Short:                 "Move nodes from Docker Engine to containerd",
		Long:                  switchLong,
		Example:               switchExample,
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
	o.addFlags(cmd.Flags())
	completeChecks(cmd)
	o.addOutputFlag(cmd)
	return cmd
}

func (o *SwitchOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVarP(&o.selection.LabelSelector, "selector", "l", "", "Switch the nodes with these labels, e.g. pool=blue,!gpu")
	flags.BoolVar(&o.all, "all", false, "Switch all nodes that are on Docker")
	o.addSharedFlags(flags)
	flags.DurationVar(&o.rollout.CutoverTimeout, "cutover-timeout", 5*time.Minute, "How long the host may take to switch; later it undoes the cutover by itself")
	addHostFlags(flags, &o.rollout)
	addIgnoreFlag(flags, &o.ignore)
}

// Validate judges the flags.
func (o *SwitchOptions) Validate() error {
	chosen := 0
	for _, is := range []bool{len(o.selection.Names) > 0, o.selection.LabelSelector != "", o.all} {
		if is {
			chosen++
		}
	}
	switch {
	case chosen == 0:
		return cli.Exitf(cli.ExitGeneral, "no nodes given").WithHint("name nodes, or use --selector or --all")
	case chosen > 1:
		return errors.New("node names, --selector and --all cannot be combined: use one of them")
	case o.rollout.CutoverTimeout < 30*time.Second:
		return fmt.Errorf("--cutover-timeout=%s: a kubelet takes up to 30s to report its new runtime; give it more", o.rollout.CutoverTimeout)
	}
	if err := validateHost(o.rollout); err != nil {
		return err
	}
	if err := validateIgnored(o.ignore); err != nil {
		return err
	}
	return o.validate()
}

// Run switches the nodes.
func (o *SwitchOptions) Run(ctx context.Context) error {
	return o.run(ctx, move{
		kind: v1alpha1.KindSwitchResult, name: "switch", assesses: true, question: "Switch", target: inventory.RuntimeContainerd, done: "switched to",
		preflight: (*preflight.Checker).Switch,
		plan:      nodeswitch.Plan,
		do:        (*nodeswitch.Switcher).Switch,
		would: func(finding preflight.Finding) string {
			return fmt.Sprintf("switched from %s to containerd", finding.Runtime)
		},
		wayBack: func(node, _ string) string {
			return o.factory.Command(append([]string{"rollback", node}, o.agentFlags()...)...)
		},
	})
}
