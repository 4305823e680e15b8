package plugin

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/client-go/kubernetes"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/assess"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/render"
)

// podListsAtMost is for how many nodes the pods are listed node by node; for more, all pods of the cluster are.
const podListsAtMost = 8

// planKind is the kind of what `plan -o json` prints.
const planKind = "Plan"

// PlanOptions are `kubectl runtime plan`.
type PlanOptions struct {
	factory   *Factory
	selection NodeSelection
	consent   drain.Options
	ignore    []string
	output    string

	client  kubernetes.Interface
	printer printers.ResourcePrinter // nil prints for people
}

// Plan is what `plan -o json` prints.
type Plan struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Nodes      []render.PlanNode `json:"nodes"`
	Findings   []PlanFinding     `json:"findings"`
	// IgnoredChecks were not run.
	IgnoredChecks []string `json:"ignoredChecks,omitempty"`
	// HostsInspected is false: the plan comes from the API alone.
	HostsInspected bool `json:"hostsInspected"`
	// Errors says why the plan is not whole, a sentence each. Nothing follows from missing findings then.
	Errors []string `json:"errors,omitempty"`
}

// PlanFinding is a finding with its check's texts.
type PlanFinding struct {
	assess.Finding `json:",inline"`
	Title          string `json:"title"`
	Why            string `json:"why"`
	Remedy         string `json:"remedy"`
}

const planLong = `Shows, before a node is touched, what depends on Docker and what a switch would refuse or be held up by, by category and with what
to do about it. It reads Nodes, Pods and PodDisruptionBudgets and changes nothing. It does not look at the hosts.

--force and --delete-emptydir-data are those of switch: what they accept does not block. Exit code 2 says that something blocks.`

const planExample = `  # What depends on Docker, and what blocks, on all nodes
  kubectl runtime plan

  # One pool, as a switch with this flag would find it
  kubectl runtime plan -l pool=blue --delete-emptydir-data

  # What blocks, for scripts
  kubectl runtime plan -o json | jq -r '.findings[] | select(.severity == "blocker") | [.node, .check, .namespace, .name] | @tsv'`

// NewPlanCommand is `kubectl runtime plan`. It only reads.
func NewPlanCommand(f *Factory) *cobra.Command {
	o := &PlanOptions{factory: f}
	cmd := &cobra.Command{
		Use:                   "plan [NODE…]",
		Short:                 "Show what depends on Docker and what blocks a switch, from the API alone",
		Long:                  planLong,
		Example:               planExample,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     completeNodes(f),
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
	addConsentFlags(cmd.Flags(), &o.consent)
	cmd.Flags().StringSliceVar(&o.ignore, "ignore-checks", nil, "IDs of checks that are not run; docs/checks.md lists them")
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "Output format. One of: ("+strings.Join(formats, ", ")+")")
	var checks []cobra.Completion
	for _, check := range assess.Checks() {
		checks = append(checks, cobra.CompletionWithDesc(check.ID, check.Title))
	}
	for flag, values := range map[string][]cobra.Completion{"output": formats, "ignore-checks": checks} {
		if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			cobra.CompDebugln(err.Error(), false)
		}
	}
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
	var err error
	o.client, err = o.factory.Clientset()
	return err
}

// Validate judges the flags.
func (o *PlanOptions) Validate() error {
	if err := assess.ValidateIDs(o.ignore); err != nil {
		return fmt.Errorf("--ignore-checks: %w", err)
	}
	return o.selection.Validate()
}

// Run prints the plan; what blocks ends in exit code 2, after it was printed.
func (o *PlanOptions) Run(ctx context.Context) error {
	in, err := o.read(ctx)
	if err != nil && (o.printer == nil || ctx.Err() != nil) {
		return err
	}
	var findings []assess.Finding
	if err == nil {
		findings = assess.Run(in)
	}
	blockers := 0
	blocked := map[string]bool{}
	for _, finding := range findings {
		if finding.Severity == assess.Blocker {
			blockers++
			blocked[finding.Node] = true
		}
	}
	if printErr := o.print(planNodes(in.Nodes, blocked, err == nil), findings, err); printErr != nil {
		return fmt.Errorf("print plan: %w", printErr)
	}
	switch {
	case err != nil:
		return err
	case blockers == 1:
		return Exitf(ExitRefused, "1 finding blocks a switch of node %s", slices.Collect(maps.Keys(blocked))[0])
	case blockers > 0:
		return Exitf(ExitRefused, "%d findings block a switch, on %d of %d nodes", blockers, len(blocked), len(in.Nodes))
	}
	return nil
}

// read asks the server for what the checks need. Pods on nodes that are not on Docker are left out.
func (o *PlanOptions) read(ctx context.Context) (assess.Input, error) {
	in := assess.Input{
		Ignore: o.ignore, Keep: nodejob.Labels(), Flags: assess.Flags{Force: o.consent.Force, DeleteEmptyDirData: o.consent.DeleteEmptyDirData},
	}
	nodes, err := findSomeNodes(ctx, o.factory, o.client, o.selection)
	if err != nil {
		return in, err
	}
	in.Nodes = nodes
	var onDocker []string
	for i := range nodes {
		if assess.OnDocker(&nodes[i]) {
			onDocker = append(onDocker, nodes[i].Name)
		}
	}
	if len(onDocker) == 0 {
		return in, nil
	}
	some, err := o.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{Limit: 2})
	if err != nil {
		return in, o.factory.explain("list", "nodes", "", err)
	}
	in.Alone = len(some.Items) < 2
	selectors := []string{""}
	if len(onDocker) <= podListsAtMost {
		selectors = nil
		for _, name := range onDocker {
			selectors = append(selectors, fields.OneTermEqualSelector("spec.nodeName", name).String())
		}
	}
	for _, selector := range selectors {
		pods, _, err := listChunks(ctx, o.factory, "pods", metav1.ListOptions{FieldSelector: selector}, o.listPods(ctx, onDocker))
		if err != nil {
			return in, err
		}
		in.Pods = append(in.Pods, pods...)
	}
	in.Budgets, err = o.listBudgets(ctx)
	return in, err
}

// listPods lists one chunk, of which it keeps the pods of these nodes; their names are sorted.
func (o *PlanOptions) listPods(ctx context.Context, nodes []string) func(metav1.ListOptions) ([]corev1.Pod, metav1.ListMeta, error) {
	return func(options metav1.ListOptions) ([]corev1.Pod, metav1.ListMeta, error) {
		list, err := o.client.CoreV1().Pods(corev1.NamespaceAll).List(ctx, options)
		if err != nil {
			return nil, metav1.ListMeta{}, err
		}
		return slices.DeleteFunc(list.Items, func(pod corev1.Pod) bool {
			_, found := slices.BinarySearch(nodes, pod.Spec.NodeName)
			return !found
		}), list.ListMeta, nil
	}
}

// listBudgets lists all PodDisruptionBudgets. Kubernetes before 1.21 has policy/v1beta1 alone, where an empty selector selects no pod.
func (o *PlanOptions) listBudgets(ctx context.Context) ([]policyv1.PodDisruptionBudget, error) {
	budgets, _, err := listChunks(ctx, o.factory, "poddisruptionbudgets.policy", metav1.ListOptions{}, func(options metav1.ListOptions) ([]policyv1.PodDisruptionBudget, metav1.ListMeta, error) {
		list, err := o.client.PolicyV1().PodDisruptionBudgets(corev1.NamespaceAll).List(ctx, options)
		if err != nil {
			return nil, metav1.ListMeta{}, err
		}
		return list.Items, list.ListMeta, nil
	})
	if !apierrors.IsNotFound(err) {
		return budgets, err
	}
	old, err := o.client.PolicyV1beta1().PodDisruptionBudgets(corev1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, o.factory.explain("list", "poddisruptionbudgets.policy", "", err)
	}
	for i := range old.Items {
		b := &old.Items[i]
		budget := policyv1.PodDisruptionBudget{ObjectMeta: b.ObjectMeta}
		if b.Spec.Selector != nil && len(b.Spec.Selector.MatchLabels)+len(b.Spec.Selector.MatchExpressions) > 0 {
			budget.Spec.Selector = b.Spec.Selector
		}
		budget.Status.DisruptionsAllowed = b.Status.DisruptionsAllowed
		budget.Status.CurrentHealthy, budget.Status.DesiredHealthy = b.Status.CurrentHealthy, b.Status.DesiredHealthy
		budgets = append(budgets, budget)
	}
	return budgets, nil
}

// planNodes gives each node its verdict; judged says that the checks were run.
func planNodes(nodes []corev1.Node, blocked map[string]bool, judged bool) []render.PlanNode {
	var all []render.PlanNode
	for i := range nodes {
		node := render.PlanNode{Name: nodes[i].Name, Runtime: nodes[i].Status.NodeInfo.ContainerRuntimeVersion, Verdict: render.VerdictNotOnDocker}
		switch {
		case node.Runtime == "", !judged:
			node.Verdict = render.VerdictUnknown
		case blocked[node.Name]:
			node.Verdict = render.VerdictBlocked
		case assess.OnDocker(&nodes[i]):
			node.Verdict = render.VerdictNotBlocked
		}
		all = append(all, node)
	}
	return all
}

// print prints the plan for people, or as one object with what went wrong.
func (o *PlanOptions) print(nodes []render.PlanNode, findings []assess.Finding, failure error) error {
	out := o.factory.Streams.Out
	if o.printer == nil {
		_, err := io.WriteString(out, render.Plan(render.DetectStyle(out, os.Getenv), nodes, findings, o.ignore))
		return err
	}
	plan := Plan{APIVersion: statusAPIVersion, Kind: planKind, Nodes: nodes, Findings: []PlanFinding{}, IgnoredChecks: o.ignore}
	if nodes == nil {
		plan.Nodes = []render.PlanNode{}
	}
	for _, finding := range findings {
		check := assess.CheckByID(finding.Check)
		plan.Findings = append(plan.Findings, PlanFinding{finding, check.Title, check.Why, check.Remedy})
	}
	if failure != nil {
		plan.Errors = []string{failure.Error()}
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&plan)
	if err != nil {
		return err
	}
	return o.printer.PrintObj(&unstructured.Unstructured{Object: content}, out)
}
