package render

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/assess"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// HostsNote says what a plan made from the API alone does not know.
const HostsNote = "The hosts themselves were not looked at: their disks, files, packages, daemon.json, and the containers that " +
	"Kubernetes does not manage. Nor was it checked whether you may switch nodes."

// hostsSeenNote says what a plan does not know even so.
const hostsSeenNote = "Nothing was changed on any node. What only a switch tries, before it drains a node: whether containerd takes its new " +
	"configuration, and whether it runs a pod sandbox. The agent keeps its journal, a backup of each changed file and itself below " +
	"/var/lib/kubectl-runtime."

// PlanView is all that people read of a plan.
type PlanView struct {
	Nodes []v1alpha1.PlanNode
	// Findings are in assess.Run's order. Ignored are IDs of checks that were not run, Notes sentences on what was not looked at.
	Findings       []assess.Finding
	Ignored, Notes []string
	// Order are the nodes on Docker as they are switched. Times are medians of Measured nodes.
	Order    []string
	Times    nodeswitch.Times
	Measured int
}

// Plan is the nodes, the findings by category, the order and the steps, and what was not looked at.
func Plan(style Style, view PlanView) string {
	nodes, findings, ignored := view.Nodes, view.Findings, view.Ignored
	var text strings.Builder
	rows := [][]string{{"NODE", "RUNTIME", "PLAN"}}
	for _, node := range nodes {
		runtime := clean(node.Runtime)
		if runtime == "" {
			runtime = "<unknown>"
		}
		rows = append(rows, []string{node.Name, runtime, style.sign(verdictSigns[node.Verdict]) + " " + string(node.Verdict)})
	}
	table(&text, "", rows)
	if len(view.Order) == 0 {
		text.WriteString("\nNo node is on Docker: there is nothing to switch.\n")
		return text.String()
	}
	for _, category := range assess.Categories() {
		fmt.Fprintf(&text, "\n%s\n", category)
		inCategory := slices.DeleteFunc(slices.Clone(findings), func(f assess.Finding) bool { return f.Category != category })
		if len(inCategory) == 0 {
			fmt.Fprintf(&text, "  %s ok       nothing found\n", style.sign(signDone))
		}
		for len(inCategory) > 0 {
			end := slices.IndexFunc(inCategory, func(f assess.Finding) bool { return f.Check != inCategory[0].Check })
			if end < 0 {
				end = len(inCategory)
			}
			planCheck(&text, style, inCategory[:end])
			inCategory = inCategory[end:]
		}
		for _, check := range assess.Checks() {
			if check.Category == category && slices.Contains(ignored, check.ID) {
				fmt.Fprintf(&text, "  %s ignored  %s\n", style.sign(signInfo), check.ID)
			}
		}
	}
	planOrder(&text, style, view)
	note := HostsNote
	for i, node := range nodes {
		if node.HostNote != "" {
			fmt.Fprintf(&text, "\n%s %s: the host was not looked at: %s\n", style.sign(signWarning), node.Name, clean(node.HostNote))
		}
		if node.HostInspected {
			note = hostsSeenNote
		}
		if same := sameSteps(nodes, i); len(same) > 0 {
			planSteps(&text, same, node)
		}
	}
	text.WriteString("\n")
	wrap(&text, style, "", "", strings.Join(append([]string{note}, view.Notes...), " "))
	return text.String()
}

// orderedAtMost bounds the names of an order.
const orderedAtMost = 20

// planOrder says which node comes when, and how long it takes.
func planOrder(text *strings.Builder, style Style, view PlanView) {
	names := view.Order
	if more := len(names) - orderedAtMost; more > 0 {
		names = append(slices.Clone(names[:orderedAtMost]), fmt.Sprintf("and %d more", more))
	}
	text.WriteString("\nOrder and time\n")
	wrap(text, style, "  ", "  ", "one after the other: "+strings.Join(names, ", "))
	if view.Measured == 0 {
		wrap(text, style, "  ", "  ", "time: unknown, since no node of this cluster has been switched and measured yet")
		return
	}
	of := "the median of the nodes that were"
	if view.Measured == 1 {
		of = "as on the one that was"
	}
	wrap(text, style, "  ", "  ", fmt.Sprintf("time: about %s a node, of which it is out of service for %s, %s switched here (%d); %s for %d",
		Duration(view.Times.Total()), Duration(view.Times.OutOfService()), of, view.Measured, Duration(view.Times.Total()*time.Duration(len(view.Order))), len(view.Order)))
}

// sameSteps are the names of the nodes that are to have the same done as the one at an index, if it is the first of them.
func sameSteps(nodes []v1alpha1.PlanNode, at int) []string {
	var names []string
	for i, node := range nodes {
		if len(node.Steps) == 0 || !slices.Equal(node.Steps, nodes[at].Steps) || !slices.Equal(node.Files, nodes[at].Files) {
			continue
		}
		if i < at {
			return nil
		}
		names = append(names, node.Name)
	}
	return names
}

// planSteps are a node's steps with the files that each changes, and then the diffs.
func planSteps(text *strings.Builder, names []string, node v1alpha1.PlanNode) {
	fmt.Fprintf(text, "\nSteps on %s\n", strings.Join(names, ", "))
	var rows [][]string
	for _, step := range node.Steps {
		rows = append(rows, []string{clean(string(step.Phase)), clean(step.ID), clean(step.Title)})
		for _, file := range node.Files {
			if file.Step == step.ID {
				rows = append(rows, []string{"", "", "  " + clean(string(file.Action)) + " " + clean(file.Path)})
			}
		}
	}
	table(text, "  ", rows)
	if len(node.Files) == 0 {
		text.WriteString("  The files are not known before what blocks on the host is cured.\n")
		return
	}
	fmt.Fprintf(text, "\nFiles on %s\n", strings.Join(names, ", "))
	for _, file := range node.Files {
		switch {
		case file.Link != "":
			fmt.Fprintf(text, "  %s link %s -> %s\n", file.Action, clean(file.Path), clean(file.Link))
		case file.Diff == "":
			fmt.Fprintf(text, "  %s %s: only secrets differ, which are not shown\n", file.Action, clean(file.Path))
		}
		for line := range strings.Lines(file.Diff) {
			text.WriteString("  " + untrusted.Visible(strings.TrimSuffix(line, "\n")) + "\n")
		}
	}
}

const planIndent = "             "

// planCheck is one check with all that it found.
func planCheck(text *strings.Builder, style Style, findings []assess.Finding) {
	check, severity := assess.CheckByID(findings[0].Check), findings[0].Severity
	wrap(text, style, fmt.Sprintf("  %s %-7s  ", style.sign(severitySigns[severity]), severity), planIndent, check.ID+": "+check.Title)
	wrap(text, style, planIndent+"why: ", planIndent+"     ", check.Why)
	wrap(text, style, planIndent+"do:  ", planIndent+"     ", check.Remedy)
	rows := [][]string{{"NODE", "NAMESPACE", "OBJECT", "FOUND"}}
	if findings[0].Name == "" {
		rows = [][]string{{"NODE", "FOUND"}}
	}
	for _, f := range together(findings) {
		detail := clean(f.Detail)
		if f.Hint != "" {
			detail += " (" + clean(f.Hint) + ")"
		}
		row := []string{f.Node, f.Namespace, clean(f.Kind + "/" + f.Name), detail} // nobody checks the kind and name of an owner
		if f.Name == "" {
			row = []string{f.Node, detail}
		}
		rows = append(rows, row)
	}
	table(text, planIndent, rows)
}

// namedAtMost bounds the nodes that are named in one cell.
const namedAtMost = 3

// together puts findings that differ in nothing but the node into one.
func together(findings []assess.Finding) []assess.Finding {
	var all []assess.Finding
	nodes := map[assess.Finding][]string{}
	for _, f := range findings {
		node := f.Node
		f.Node = ""
		if nodes[f] == nil {
			all = append(all, f)
		}
		nodes[f] = append(nodes[f], node)
	}
	for i, f := range all {
		names := nodes[f]
		if more := len(names) - namedAtMost; more > 0 {
			names = append(slices.Clone(names[:namedAtMost]), fmt.Sprintf("+%d", more))
		}
		if all[i].Node = strings.Join(names, ","); all[i].Node == "" {
			all[i].Node = "<none>"
		}
	}
	return all
}

var (
	severitySigns = map[assess.Severity]sign{assess.Blocker: signFailed, assess.Warning: signWarning, assess.Info: signInfo}
	verdictSigns  = map[v1alpha1.Verdict]sign{v1alpha1.VerdictNotBlocked: signDone, v1alpha1.VerdictBlocked: signFailed, v1alpha1.VerdictNotOnDocker: signInfo, v1alpha1.VerdictUnknown: signWarning}
)

func table(text *strings.Builder, indent string, rows [][]string) {
	w := tabwriter.NewWriter(text, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, indent+strings.Join(row, "\t"))
	}
	_ = w.Flush() // a strings.Builder takes everything
}

// wrap writes words, broken at the terminal's width. First begins the first line, in place of indent.
func wrap(text *strings.Builder, style Style, first, indent, words string) {
	line := first
	column := len(indent) // as wide as first, whose sign may have bytes that are not seen
	empty := true
	for word := range strings.FieldsSeq(words) {
		if !empty && column+1+len(word) > style.Width() {
			text.WriteString(line + "\n")
			line, column, empty = indent, len(indent), true
		}
		if !empty {
			line, column = line+" ", column+1
		}
		line, column, empty = line+word, column+len(word), false
	}
	text.WriteString(line + "\n")
}
