package plugin

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/assess"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
)

func addIgnoreFlag(flags *pflag.FlagSet, ignore *[]string) {
	flags.StringSliceVar(ignore, "ignore-checks", nil, "IDs of checks that are not run; docs/checks.md lists them")
}

// completeChecks completes --ignore-checks.
func completeChecks(cmd *cobra.Command) {
	var checks []cobra.Completion
	for _, check := range assess.Checks() {
		if assess.ValidateIDs([]string{check.ID}) == nil {
			checks = append(checks, cobra.CompletionWithDesc(check.ID, check.Title))
		}
	}
	if err := cmd.RegisterFlagCompletionFunc("ignore-checks", cobra.FixedCompletions(checks, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		cobra.CompDebugln(err.Error(), false)
	}
}

func validateIgnored(ids []string) error {
	if err := assess.ValidateIDs(ids); err != nil {
		return fmt.Errorf("--ignore-checks: %w", err)
	}
	return nil
}

// assess runs the checks of plan on the nodes that passed the preflight and have no run to resume. What blocks is one error for all
// nodes, or has a node that was chosen by a selector skipped; warnings are counted on standard error.
func (o *runOptions) assess(ctx context.Context, nodes []corev1.Node, passed []preflight.Finding) error {
	begins := map[string]bool{} // a run that is resumed has a drain behind it, which gives up and uncordons by itself
	for _, finding := range passed {
		begins[finding.Node] = finding.Verdict == preflight.Go
	}
	var todo []corev1.Node
	for i := range nodes {
		if begins[nodes[i].Name] {
			todo = append(todo, nodes[i])
		}
	}
	r := &clusterReader{factory: o.factory, client: o.client, drain: o.rollout.Drain, ignore: o.ignore}
	in, err := r.forSwitch(ctx, todo)
	if err != nil {
		return err
	}
	var refused []string
	blocked := map[string]string{}    // node to what blocks it first
	warnings := map[string][]string{} // node to the checks that warn, each once
	counts := map[string]int{}
	for _, f := range assess.Run(in) {
		switch f.Severity {
		case assess.Blocker:
			text := fmt.Sprintf("%s: %s %s/%s: %s", f.Check, f.Kind, f.Namespace, f.Name, f.Detail)
			refused = append(refused, fmt.Sprintf("node %s: %s", f.Node, text))
			if blocked[f.Node] == "" {
				blocked[f.Node] = text
			}
		case assess.Warning:
			if counts[f.Node+f.Check]++; counts[f.Node+f.Check] == 1 {
				warnings[f.Node] = append(warnings[f.Node], f.Check)
			}
		case assess.Info:
		}
	}
	if o.skips() {
		for i := range passed {
			if reason := blocked[passed[i].Node]; reason != "" {
				passed[i].Verdict, passed[i].Unfit, passed[i].Reason = preflight.Refuse, true, reason
			}
		}
	} else if len(refused) > 0 {
		return cli.Exitf(cli.ExitRefused, "%s", strings.Join(refused, "\n")).
			WithHint("nothing was changed; `%s` says what to do", o.factory.Command("plan", "--api-only", todo[0].Name))
	}
	for i := range todo {
		name := todo[i].Name
		if len(warnings[name]) == 0 {
			continue
		}
		var texts []string
		for _, check := range warnings[name] {
			texts = append(texts, fmt.Sprintf("%s (%d)", check, counts[name+check]))
		}
		fmt.Fprintf(o.factory.Streams.ErrOut, "node %s: warnings of %s; `%s` says what to do\n", name, strings.Join(texts, ", "), o.factory.Command("plan", name))
	}
	return nil
}
