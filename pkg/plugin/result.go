package plugin

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
)

// The values of NodeResult.Result.
const (
	resultDone     = "done"
	resultSkipped  = "skipped"   // there was nothing to do
	resultPlanned  = "planned"   // by a dry run
	resultFailed   = "failed"    // Error says why, and in which state the node is
	resultBlocked  = "blocked"   // PodDisruptionBudgets kept it from being drained at each attempt; it serves as before
	resultNotBegun = "not-begun" // Reason says why
)

// Result is what `switch -o json` and `rollback -o json` print, whatever failed.
type Result struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"` // SwitchResult or RollbackResult
	Nodes      []NodeResult `json:"nodes"`
	// Errors says what went wrong, a sentence each.
	Errors []string `json:"errors,omitempty"`
}

// NodeResult is what became of one node.
type NodeResult struct {
	Node   string `json:"node"`
	Result string `json:"result"`
	Reason string `json:"reason,omitempty"`
	// From and To are runtimes as nodeInfo spells them.
	From    string `json:"from,omitempty"`
	To      string `json:"to,omitempty"`
	Run     string `json:"run,omitempty"`
	Resumed bool   `json:"resumed,omitempty"`
	// Stages are those of the run, in order; Steps the agent's on the node.
	Stages []StageResult `json:"stages,omitempty"`
	Steps  []StepResult  `json:"steps,omitempty"`
	// OutOfServiceSeconds is from the run's cordon to its uncordon; absent where the node was cordoned before.
	OutOfServiceSeconds float64  `json:"outOfServiceSeconds,omitempty"`
	Cordoned            bool     `json:"cordoned,omitempty"`
	ChangedFiles        []string `json:"changedFiles,omitempty"`
	Warnings            []string `json:"warnings,omitempty"`
	// Plan is what a dry run would do, a sentence each.
	Plan []string `json:"plan,omitempty"`
	// Error is why a node failed.
	Error string `json:"error,omitempty"`
}

// StageResult is how long a stage took.
type StageResult struct {
	Stage   string  `json:"stage"`
	Seconds float64 `json:"seconds"`
}

// StepResult is how long a step of the agent took.
type StepResult struct {
	Phase   string  `json:"phase"`
	Step    string  `json:"step"`
	Seconds float64 `json:"seconds"`
}

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
func (o *runOptions) conclude(result NodeResult, text string) error {
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
	result := Result{APIVersion: cli.APIVersion, Kind: m.kind, Nodes: o.results}
	if result.Nodes == nil {
		result.Nodes = []NodeResult{}
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
func nodeResult(report *nodeswitch.Report, err error) NodeResult {
	result := NodeResult{
		Node: report.Node, Result: resultDone, From: report.From, To: report.To, Run: report.Run, Resumed: report.Resumed,
		OutOfServiceSeconds: seconds(report.OutOfService), Cordoned: report.Cordoned, ChangedFiles: report.ChangedFiles, Warnings: report.Warnings,
	}
	for _, stage := range report.Stages {
		result.Stages = append(result.Stages, StageResult{string(stage.Stage), seconds(stage.Elapsed)})
	}
	for _, step := range report.Steps {
		result.Steps = append(result.Steps, StepResult{string(step.Phase), step.ID, seconds(step.Elapsed)})
	}
	if err != nil {
		result.Result, result.Error = resultFailed, err.Error()
		var failed *nodeswitch.Error
		if errors.As(err, &failed) {
			result.Reason = failed.State
		}
	}
	return result
}

// seconds are whole milliseconds.
func seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }
