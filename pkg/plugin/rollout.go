package plugin

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/client-go/kubernetes"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rolloutrecord"
)

const rolloutLong = `Shows and controls rollouts. A switch or rollback of several nodes is a rollout; it prints its name when it begins. The process
that runs the command is its driver: it decides which node starts when. The records of the last 20 rollouts that have ended are kept.`

// NewRolloutCommand is `kubectl runtime rollout`.
func NewRolloutCommand(f *cli.Factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:                   "rollout SUBCOMMAND",
		Short:                 "Show, pause, resume and abort rollouts over several nodes",
		Long:                  rolloutLong,
		DisableFlagsInUseLine: true,
		Args:                  cobra.NoArgs,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRolloutListCommand(f), newRolloutStatusCommand(f), newRolloutPauseCommand(f), newRolloutResumeCommand(f), newRolloutAbortCommand(f))
	return cmd
}

// rollouts are the records of a cluster.
func rollouts(f *cli.Factory, client kubernetes.Interface) rolloutrecord.Store {
	return rolloutrecord.Store{Client: client, Clock: f.Clock}
}

// rolloutError explains why a rollout was not read or changed.
func rolloutError(f *cli.Factory, verb, name string, err error) error {
	if apierrors.IsNotFound(err) {
		return cli.Exitf(cli.ExitGeneral, "there is no rollout %q", name).WithHint("`%s` lists them", f.Command("rollout", "list"))
	}
	return f.Explain(verb, "configmaps", "", err)
}

// completeRollouts completes the names of rollouts.
func completeRollouts(f *cli.Factory) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		client, err := f.Clientset()
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), cli.CompletionTimeout)
		defer cancel()
		entries, _, err := rollouts(f, client).List(ctx)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
		}
		var names []cobra.Completion
		for _, e := range entries {
			if strings.HasPrefix(e.Name, toComplete) {
				names = append(names, e.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// rolloutOutput is the flag -o of the commands that show rollouts.
type rolloutOutput struct{ format string }

func (o *rolloutOutput) addFlag(cmd *cobra.Command, more ...string) {
	formats := append([]string{"json", "name", "yaml"}, more...)
	cmd.Flags().StringVarP(&o.format, "output", "o", "", "Output format. One of: ("+strings.Join(formats, ", ")+")")
	if err := cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		cobra.CompDebugln(err.Error(), false)
	}
}

// isForPeople reports whether no object is printed.
func (o *rolloutOutput) isForPeople() bool { return o.format == "" || o.format == "wide" }

// print prints objects: one as it is, several as a list.
func (o *rolloutOutput) print(w io.Writer, objects []v1alpha1.Rollout, list bool) error {
	if o.format == "name" {
		for _, object := range objects {
			fmt.Fprintln(w, "rollout/"+object.Metadata.Name)
		}
		return nil
	}
	printer, err := genericclioptions.NewJSONYamlPrintFlags().ToPrinter(o.format)
	if err != nil {
		return fmt.Errorf("--output %q is not a format: give one of json, name, yaml", o.format)
	}
	all := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": v1alpha1.APIVersion, "kind": v1alpha1.KindRolloutList, "metadata": map[string]any{}}}
	for i := range objects {
		object, err := cli.Printable(&objects[i])
		if err != nil {
			return fmt.Errorf("print rollout %s: %w", objects[i].Metadata.Name, err)
		}
		all.Items = append(all.Items, *object)
	}
	if list {
		return printer.PrintObj(all, w)
	}
	return printer.PrintObj(&all.Items[0], w)
}

const rolloutListExample = `  # All rollouts, the oldest first
  kubectl runtime rollout list

  # With the nodes that were chosen, the limits and why nodes were left
  kubectl runtime rollout list -o wide`

// newRolloutListCommand is `kubectl runtime rollout list`.
func newRolloutListCommand(f *cli.Factory) *cobra.Command {
	var output rolloutOutput
	noHeaders := false
	cmd := &cobra.Command{
		Use:                   "list",
		Aliases:               []string{"ls"},
		Short:                 "List rollouts",
		Example:               rolloutListExample,
		DisableFlagsInUseLine: true,
		Args:                  cobra.NoArgs,
		ValidArgsFunction:     cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listRollouts(cmd.Context(), f, &output, noHeaders)
		},
	}
	output.addFlag(cmd, "wide")
	cmd.Flags().BoolVar(&noHeaders, "no-headers", false, "Print no headers")
	return cmd
}

func listRollouts(ctx context.Context, f *cli.Factory, output *rolloutOutput, noHeaders bool) error {
	client, err := f.Clientset()
	if err != nil {
		return err
	}
	entries, unreadable, err := rollouts(f, client).List(ctx)
	if err != nil {
		return f.Explain("list", "configmaps", "", err)
	}
	for _, text := range unreadable {
		fmt.Fprintf(f.Streams.ErrOut, "warning: %s\n", text)
	}
	if !output.isForPeople() {
		objects := make([]v1alpha1.Rollout, len(entries))
		for i, e := range entries {
			objects[i] = e.Object()
		}
		return output.print(f.Streams.Out, objects, true)
	}
	if len(entries) == 0 {
		fmt.Fprintln(f.Streams.ErrOut, "No rollouts found")
		return nil
	}
	w := printers.GetNewTabWriter(f.Streams.Out)
	head := []string{"NAME", "STATUS", "NODES", "DONE", "FAILED", "LEFT", "OWNER", "AGE"}
	if output.format == "wide" {
		head = append(head, "MAX-UNAVAILABLE", "SELECTION", "REASON")
	}
	if !noHeaders {
		fmt.Fprintln(w, strings.Join(head, "\t"))
	}
	for _, e := range entries {
		fmt.Fprintln(w, strings.Join(rolloutRow(e, f.Clock.Now(), output.format == "wide"), "\t"))
	}
	return w.Flush()
}

// rolloutRow is a row of the table. No cell has a blank in it but the last.
func rolloutRow(e rolloutrecord.Entry, now time.Time, wide bool) []string {
	c := e.Status.Counts
	cell := func(text string) string {
		if text = strings.ReplaceAll(text, " ", "_"); text == "" {
			return "<none>"
		}
		return text
	}
	row := []string{
		e.Name, string(e.State), fmt.Sprint(e.Spec.Nodes), fmt.Sprint(c.Done), fmt.Sprint(c.Failed + c.Blocked), fmt.Sprint(c.Waiting + c.InFlight), cell(e.Spec.Owner),
		duration.HumanDuration(now.Sub(e.Created)),
	}
	if wide {
		reason := e.Why()
		if reason == "" {
			reason = "<none>"
		}
		row = append(row, cell(e.Spec.MaxUnavailable), cell(strings.Join(e.Spec.Selection, ",")), reason)
	}
	return row
}

// resumeCommand is the command that resumes a rollout whose driver is gone. Whoever can write the record could have people run something else: so a flag passes
// only if it is one that the command itself has, and no argument passes for a flag.
func resumeCommand(f *cli.Factory, e *rolloutrecord.Entry) string {
	known := NewSwitchCommand(f).Flags()
	if e.Spec.Operation == "rollback" {
		known = NewRollbackCommand(f).Flags()
	}
	selector := regexp.MustCompile(`^--(selector|all)=`)
	words := []string{e.Spec.Operation}
	for _, word := range e.Spec.Selection {
		if !strings.HasPrefix(word, "-") || selector.MatchString(word) {
			words = append(words, word)
		}
	}
	for _, word := range e.Spec.Flags {
		name, _, hasValue := strings.Cut(strings.TrimPrefix(word, "--"), "=")
		if strings.HasPrefix(word, "--") && hasValue && known.Lookup(name) != nil && !slices.Contains([]string{"selector", "all"}, name) {
			words = append(words, word)
		}
	}
	return f.Command(words...)
}
