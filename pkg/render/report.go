package render

import (
	"fmt"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Report is the closing report on a node that was switched: what took how long, what changed, how to go back. Back is the sentence
// on the latter.
func Report(report *nodeswitch.Report, back string) string {
	var text strings.Builder
	var stages []string
	for _, stage := range report.Stages {
		stages = append(stages, fmt.Sprintf("%s %s", stage.Stage, Duration(stage.Elapsed)))
	}
	line := func(name, value string) { fmt.Fprintf(&text, "  %-15s %s\n", name+":", value) }
	fmt.Fprintf(&text, "node %s: from %s to %s\n", report.Node, clean(report.From), clean(report.To))
	if len(stages) > 0 {
		line("time", strings.Join(stages, ", "))
	}
	var steps []string
	for _, step := range report.Steps {
		if step.Phase == protocol.PhaseCutover && step.Elapsed >= time.Second {
			steps = append(steps, fmt.Sprintf("%s %s", clean(step.ID), Duration(step.Elapsed)))
		}
	}
	if len(steps) > 0 {
		line("in the cutover", strings.Join(steps, ", "))
	}
	if report.OutOfService > 0 {
		line("out of service", Duration(report.OutOfService)+", from cordon to uncordon")
	}
	if report.Cordoned {
		line("note", "the node was cordoned before and still is")
	}
	for i, file := range report.ChangedFiles {
		name := ""
		if i == 0 {
			name = "changed files"
			line(name, clean(file))
			continue
		}
		fmt.Fprintf(&text, "  %-15s %s\n", name, clean(file))
	}
	for _, warning := range report.Warnings {
		line("warning", clean(warning))
	}
	if back != "" {
		line("way back", back)
	}
	return text.String()
}
