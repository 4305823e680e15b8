package plugin

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/assess"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/render"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rollout"
)

// PlanOptions are `kubectl runtime plan`.
type PlanOptions struct {
	factory   *cli.Factory
	selection cli.NodeSelection
	rollout   nodeswitch.Options
	pull      string
	apiOnly   bool
	ignore    []string
	output    string

	// allPods is up to how many nodes the cluster's pods are all listed.
	allPods int

	client  kubernetes.Interface
	config  *rest.Config
	printer printers.ResourcePrinter // nil prints for people
}

const planLong = `Shows, before a node is touched, what depends on Docker and what a switch would refuse or be held up by, by category and with what
to do about it; then the steps of a switch, and a diff of every file that it would change. It reads Nodes, Pods and PodDisruptionBudgets,
and has a Job on each node look at the host, which changes nothing there; --api-only does without.

--force, --delete-emptydir-data, --keep-docker and --images are those of switch: what they accept does not block. Exit code 2 says that
something blocks.`

const planExample = `  # What depends on Docker, and what blocks, on all nodes
  kubectl runtime plan

  # From the API alone: no Job on any node
  kubectl runtime plan --api-only

  # One pool, as a switch with this flag would find it
  kubectl runtime plan -l pool=blue --delete-emptydir-data

  # What blocks, for scripts
  kubectl runtime plan -o json | jq -r '.findings[] | select(.severity == "blocker") | [.node, .check, .namespace, .name] | @tsv'`

// NewPlanCommand is `kubectl runtime plan`. It only reads.
func NewPlanCommand(f *cli.Factory) *cobra.Command {
	return newPlanCommand(&PlanOptions{factory: f, allPods: allPodsAtMost})
}

func newPlanCommand(o *PlanOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:                   "plan [NODE…]",
		Short:                 "Show what depends on Docker, what blocks a switch, and what it would change",
		Long:                  planLong,
		Example:               planExample,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cli.CompleteNodes(o.factory),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.Complete(args); err != nil {
				return err
			}
			if err := o.Validate(); err != nil {
				return err
			}
			return o.Run(cmd.Context())
		},
	}
	formats := genericclioptions.NewJSONYamlPrintFlags().AllowedFormats()
	cmd.Flags().StringVarP(&o.selection.LabelSelector, "selector", "l", "", "Only nodes with these labels, e.g. pool=blue,!gpu")
	addConsentFlags(cmd.Flags(), &o.rollout.Drain)
	addAgentFlags(cmd.Flags(), &o.rollout, &o.pull)
	addHostFlags(cmd.Flags(), &o.rollout)
	cmd.Flags().BoolVar(&o.apiOnly, "api-only", false, "Do not look at the hosts: create no Job")
	addIgnoreFlag(cmd.Flags(), &o.ignore)
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "Output format. One of: ("+strings.Join(formats, ", ")+")")
	if err := cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		cobra.CompDebugln(err.Error(), false)
	}
	completeChecks(cmd)
	return cmd
}

// Complete reads arguments, flags and kubeconfig.
func (o *PlanOptions) Complete(args []string) error {
	o.selection.Names = args
	slices.Sort(o.ignore)
	o.ignore = slices.Compact(o.ignore)
	if o.output != "" {
		flags := genericclioptions.NewJSONYamlPrintFlags()
		var err error
		if o.printer, err = flags.ToPrinter(o.output); err != nil {
			return fmt.Errorf("--output %q is not a format: give one of %s", o.output, strings.Join(flags.AllowedFormats(), ", "))
		}
	}
	o.rollout.PullPolicy = corev1.PullPolicy(o.pull)
	o.rollout.Image = cmp.Or(o.rollout.Image, o.factory.AgentImage())
	var err error
	if o.config, err = o.factory.RESTConfig(); err != nil {
		return err
	}
	o.client, err = o.factory.Clientset()
	return err
}

// Validate judges the flags.
func (o *PlanOptions) Validate() error {
	if !o.apiOnly {
		if err := validateAgent(o.rollout); err != nil {
			return fmt.Errorf("%w; or look at the API alone with --api-only", err)
		}
	}
	if err := validateHost(o.rollout); err != nil {
		return err
	}
	if err := validateIgnored(o.ignore); err != nil {
		return err
	}
	return o.selection.Validate()
}

// Run prints the plan; what blocks ends in exit code 2, after it was printed.
func (o *PlanOptions) Run(ctx context.Context) error {
	in, notes, err := o.read(ctx)
	if err != nil && (o.printer == nil || ctx.Err() != nil) {
		return err
	}
	hosts := hostLooks{}
	var findings []assess.Finding
	if err == nil {
		findings = assess.Run(in)
		if !o.apiOnly {
			if hosts, err = o.lookAtHosts(ctx, in.Nodes); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		if plan := hosts[name].plan; plan != nil {
			findings = assess.Merge(findings, assess.FromHost(name, plan.Findings, o.ignore))
		}
	}
	blockers := 0
	blocked := map[string]bool{}
	for _, finding := range findings {
		if finding.Severity == assess.Blocker {
			blockers++
			blocked[finding.Node] = true
		}
	}
	shown := render.PlanView{
		Nodes: planNodes(in.Nodes, blocked, hosts, err == nil), Findings: findings, Ignored: o.ignore, Notes: notes, Order: orderOf(in.Nodes),
	}
	shown.Times, shown.Measured = nodeswitch.Measured(in.AllNodes)
	if printErr := o.print(shown, hosts, err); printErr != nil {
		return fmt.Errorf("print plan: %w", printErr)
	}
	switch {
	case err != nil:
		return err
	case blockers == 1:
		return cli.Exitf(cli.ExitRefused, "1 finding blocks a switch of node %s", slices.Collect(maps.Keys(blocked))[0])
	case blockers > 0:
		return cli.Exitf(cli.ExitRefused, "%d findings block a switch, on %d of %d nodes", blockers, len(blocked), len(in.Nodes))
	}
	return hosts.failure()
}

// read reads what the checks need, and says what it could not.
func (o *PlanOptions) read(ctx context.Context) (assess.Input, []string, error) {
	if err := o.factory.CheckServer(ctx, o.client); err != nil {
		return assess.Input{}, nil, err
	}
	nodes, err := cli.FindSomeNodes(ctx, o.factory, o.client, o.selection)
	if err != nil {
		return assess.Input{}, nil, err
	}
	r := &clusterReader{factory: o.factory, client: o.client, drain: o.rollout.Drain, ignore: o.ignore, allPods: o.allPods}
	in, err := r.forPlan(ctx, nodes)
	return in, r.notes, err
}

// planNodes gives each node its verdict; judged says that the checks were run.
func planNodes(nodes []corev1.Node, blocked map[string]bool, hosts hostLooks, judged bool) []v1alpha1.PlanNode {
	var all []v1alpha1.PlanNode
	for i := range nodes {
		node := v1alpha1.PlanNode{Name: nodes[i].Name, Runtime: inventory.FromNode(&nodes[i]).Reported, Verdict: v1alpha1.VerdictNotOnDocker}
		look := hosts[node.Name]
		switch {
		case node.Runtime == "", !judged:
			node.Verdict = v1alpha1.VerdictUnknown
		case blocked[node.Name]:
			node.Verdict = v1alpha1.VerdictBlocked
		case look.err != nil:
			node.Verdict = v1alpha1.VerdictUnknown
		case assess.OnDocker(&nodes[i]):
			node.Verdict = v1alpha1.VerdictNotBlocked
		}
		node.HostNote = look.note()
		if look.plan != nil {
			node.HostInspected, node.Steps, node.Files = true, look.plan.Steps, look.plan.Files
		}
		all = append(all, node)
	}
	return all
}

// orderOf are the names of the nodes that are on Docker, in the order in which they are switched.
func orderOf(nodes []corev1.Node) []string {
	nodes = slices.Clone(nodes)
	rollout.Order(nodes)
	var names []string
	for i := range nodes {
		if assess.OnDocker(&nodes[i]) {
			names = append(names, nodes[i].Name)
		}
	}
	return names
}

// print prints the plan for people, or as one object with what went wrong.
func (o *PlanOptions) print(view render.PlanView, hosts hostLooks, failure error) error {
	out := o.factory.Streams.Out
	if o.printer == nil {
		_, err := io.WriteString(out, render.Plan(render.DetectStyle(out, os.Getenv), view))
		return err
	}
	plan := v1alpha1.Plan{
		APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.KindPlan, Nodes: view.Nodes, Findings: []v1alpha1.PlanFinding{}, Order: view.Order,
		IgnoredChecks: view.Ignored, HostsInspected: hosts.all(), Notes: view.Notes,
	}
	if plan.Nodes == nil {
		plan.Nodes = []v1alpha1.PlanNode{}
	}
	if t := view.Times; view.Measured > 0 {
		plan.Expected = &v1alpha1.PlanTimes{
			MeasuredNodes: int64(view.Measured), PrepareSeconds: int64(t.Prepare.Seconds()), OutOfServiceSeconds: int64(t.OutOfService().Seconds()),
			NodeSeconds: int64(t.Total().Seconds()), TotalSeconds: int64(t.Total().Seconds()) * int64(len(view.Order)),
		}
	}
	for _, finding := range view.Findings {
		check := assess.CheckByID(finding.Check)
		plan.Findings = append(plan.Findings, v1alpha1.PlanFinding{
			Check: finding.Check, Category: string(finding.Category), Severity: string(finding.Severity), Node: finding.Node,
			Kind: finding.Kind, Namespace: finding.Namespace, Name: finding.Name, Detail: finding.Detail, Hint: finding.Hint,
			Title: check.Title, Why: check.Why, Remedy: check.Remedy,
		})
	}
	if failure != nil {
		plan.Errors = []string{failure.Error()}
	}
	plan.Errors = append(plan.Errors, hosts.errors()...)
	object, err := cli.Printable(&plan)
	if err != nil {
		return err
	}
	return o.printer.PrintObj(object, out)
}
