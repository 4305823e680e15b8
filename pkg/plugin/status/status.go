// Package status is `kubectl runtime status`: it reads Nodes, as a list, a table of the server or a watch, and prints a row for each.
package status

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
)

// Options are `kubectl runtime status`.
type Options struct {
	factory   *cli.Factory
	selection cli.NodeSelection
	print     *printFlags
	watch     bool

	client  kubernetes.Interface
	printer rowPrinter
}

const example = `  # The runtime of every node, and what to do about it
  kubectl runtime status

  # The nodes that are still on Docker, by name
  kubectl runtime status -o jsonpath='{range .items[?(@.runtime=="docker")]}{.metadata.name}{"\n"}{end}'

  # Follow a switch
  kubectl runtime status -l pool=blue -w`

// NewCommand is `kubectl runtime status`. It only reads Nodes, and of a single one also the Lease that claims it.
func NewCommand(f *cli.Factory) *cobra.Command {
	o := &Options{factory: f, print: newPrintFlags()}
	cmd := &cobra.Command{
		Use:   "status [NODE…]",
		Short: "Show each node's runtime, its version, the state of a switch, and what to do",
		Long: `Shows each node's container runtime, its version and the kubelet's, how far a switch is, and what to do about it. It reads
the API and nothing else; the lines below the table, on standard error, explain the notes. Of a single node they also tell
what its last run left, who is at work on it, and what to type next.`,
		Example:               example,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cli.CompleteNodes(f),
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
	cmd.Flags().StringVarP(&o.selection.LabelSelector, "selector", "l", "", "Only nodes with these labels, e.g. pool=blue,!gpu")
	cmd.Flags().StringVar(&o.selection.FieldSelector, "field-selector", "", "Only nodes with these fields, e.g. spec.unschedulable=true")
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "After the list, print each node whose row changes, until interrupted")
	o.print.addFlags(cmd)
	return cmd
}

// Complete reads arguments, flags and kubeconfig.
func (o *Options) Complete(args []string) error {
	o.selection.Names = args
	var err error
	if o.printer, err = o.print.toPrinter(o.factory.Streams.Out); err != nil {
		return err
	}
	o.client, err = o.factory.Clientset()
	return err
}

// Validate judges the flags.
func (o *Options) Validate() error { return o.selection.Validate() }

// Run prints the nodes, and with --watch what changes. Nodes that the user named and that do not exist end in an error, after
// the others were printed.
func (o *Options) Run(ctx context.Context) error {
	if o.watch {
		return o.runWatch(ctx)
	}
	nodes, err := o.find(ctx)
	if errors.Is(err, context.Canceled) {
		return err
	}
	rows := inventory.FromNodes(nodes)
	if printErr := o.printer.list(o.factory.Streams.Out, rows, err); printErr != nil {
		return fmt.Errorf("print status: %w", printErr)
	}
	if err != nil {
		return err
	}
	o.printSummary(rows)
	if len(o.selection.Names) == 1 && len(rows) == 1 && o.printer.human() && !o.print.noHeaders {
		o.printNode(ctx, o.factory.Streams.ErrOut, rows[0])
	}
	return nil
}

// find reads the nodes: for people, who get a table, all or many by the server's own table where it has one.
func (o *Options) find(ctx context.Context) ([]corev1.Node, error) {
	if len(o.selection.Names) == 0 && o.printer.human() {
		nodes, err := listTable(ctx, o.factory, o.client, metav1.ListOptions{
			LabelSelector: o.selection.LabelSelector, FieldSelector: o.selection.FieldSelector,
		})
		if !errors.Is(err, errNoTable) {
			return nodes, err
		}
	}
	return cli.FindNodes(ctx, o.factory, o.client, o.selection)
}

// printSummary tells people how many there are and what the notes mean.
func (o *Options) printSummary(rows []inventory.Row) {
	w := o.factory.Streams.ErrOut
	switch {
	case len(rows) == 0:
		fmt.Fprintln(w, "No nodes found")
		return
	case !o.printer.human() || o.print.noHeaders:
		return
	}
	fmt.Fprintf(w, "\n%s\n", inventory.Summary(rows))
	for _, line := range legend(rows) {
		fmt.Fprintln(w, line)
	}
}
