package plugin

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
)

// addOutputFlag adds kubectl's -o, with the formats of one object.
func (o *runOptions) addOutputFlag(cmd *cobra.Command) {
	formats := genericclioptions.NewJSONYamlPrintFlags().AllowedFormats()
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "Output format. One of: ("+strings.Join(formats, ", ")+")")
	if err := cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		cobra.CompDebugln(err.Error(), false)
	}
}

// completeOutput finds the printer, if -o names one.
func (o *runOptions) completeOutput() error {
	if o.output == "" {
		return nil
	}
	flags := genericclioptions.NewJSONYamlPrintFlags()
	var err error
	if o.printer, err = flags.ToPrinter(o.output); err != nil {
		return fmt.Errorf("--output %q is not a format: give one of %s", o.output, strings.Join(flags.AllowedFormats(), ", "))
	}
	return nil
}

// conclude notes what became of a node, and prints the text for people unless an object is printed in the end.
func (o *runOptions) conclude(result v1alpha1.NodeResult, text string) error {
	o.results = append(o.results, result)
	if o.printer != nil {
		return nil
	}
	if _, err := io.WriteString(o.factory.Streams.Out, text); err != nil {
		return fmt.Errorf("print result of node %s: %w", result.Node, err)
	}
	return nil
}

// printResults prints the object, if -o asks for one.
func (o *runOptions) printResults(m move, failure error) error {
	if o.printer == nil {
		return nil
	}
	result := v1alpha1.Result{APIVersion: v1alpha1.APIVersion, Kind: m.kind, Rollout: o.rolloutName, Nodes: o.results}
	if result.Nodes == nil {
		result.Nodes = []v1alpha1.NodeResult{}
	}
	if failure != nil {
		result.Errors = strings.Split(failure.Error(), "\n")
	}
	object, err := cli.Printable(&result)
	if err != nil {
		return fmt.Errorf("print results: %w", err)
	}
	return o.printer.PrintObj(object, o.factory.Streams.Out)
}

// nodeResult turns a rollout's report into what is printed.
func nodeResult(report *nodeswitch.Report, err error) v1alpha1.NodeResult {
	result := v1alpha1.NodeResult{
		Node: report.Node, Result: v1alpha1.ResultDone, From: report.From, To: report.To, Run: report.Run, Resumed: report.Resumed,
		OutOfServiceSeconds: seconds(report.OutOfService), Cordoned: report.Cordoned, ChangedFiles: report.ChangedFiles, Warnings: report.Warnings,
	}
	for _, stage := range report.Stages {
		result.Stages = append(result.Stages, v1alpha1.StageResult{Stage: string(stage.Stage), Seconds: seconds(stage.Elapsed)})
	}
	for _, step := range report.Steps {
		result.Steps = append(result.Steps, v1alpha1.StepResult{Phase: string(step.Phase), Step: step.ID, Seconds: seconds(step.Elapsed)})
	}
	if err != nil {
		result.Result, result.Error = v1alpha1.ResultFailed, err.Error()
		var failed *nodeswitch.Error
		if errors.As(err, &failed) {
			result.Reason = failed.State
		}
	}
	return result
}

// seconds are whole milliseconds.
func seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }
