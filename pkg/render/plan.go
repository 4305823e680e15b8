package render

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/assess"
)

// HostsNote says what a plan made from the API alone does not know.
const HostsNote = "The hosts themselves were not looked at: their disks, files, packages, daemon.json, and the containers that " +
	"Kubernetes does not manage. Nor was it checked whether other nodes have room for the pods, and whether you may switch nodes."

// Verdict is what a plan says of a node.
type Verdict string

// The verdicts. NotBlocked and Blocked are for nodes on Docker; Unknown is for one that does not report its runtime, or whose checks
// could not be run.
const (
	VerdictNotBlocked  Verdict = "not-blocked"
	VerdictBlocked     Verdict = "blocked"
	VerdictNotOnDocker Verdict = "not-on-docker"
	VerdictUnknown     Verdict = "unknown"
)

// PlanNode is one node of a plan. Runtime is as the node spells it, and may be empty.
type PlanNode struct {
	Name    string  `json:"name"`
	Runtime string  `json:"runtime,omitempty"`
	Verdict Verdict `json:"verdict"`
}

// Plan is what people read of a plan: the nodes, the findings by category, and what was not looked at. Ignored are IDs of checks that
// were not run; findings are in assess.Run's order.
func Plan(style Style, nodes []PlanNode, findings []assess.Finding, ignored []string) string {
	var text strings.Builder
	rows := [][]string{{"NODE", "RUNTIME", "PLAN"}}
	onDocker := false
	for _, node := range nodes {
		runtime := clean(node.Runtime)
		if runtime == "" {
			runtime = "<unknown>"
		}
		rows = append(rows, []string{node.Name, runtime, style.sign(verdictSigns[node.Verdict]) + " " + string(node.Verdict)})
		onDocker = onDocker || node.Verdict == VerdictNotBlocked || node.Verdict == VerdictBlocked
	}
	table(&text, "", rows)
	if !onDocker {
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
	text.WriteString("\n")
	wrap(&text, style, "", "", HostsNote)
	return text.String()
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
	for _, f := range findings {
		row := []string{f.Node, f.Namespace, f.Kind + "/" + f.Name, clean(f.Detail)}
		if f.Name == "" {
			row = []string{f.Node, clean(f.Detail)}
		}
		rows = append(rows, row)
	}
	table(text, planIndent, rows)
}

var (
	severitySigns = map[assess.Severity]sign{assess.Blocker: signFailed, assess.Warning: signWarning, assess.Info: signInfo}
	verdictSigns  = map[Verdict]sign{VerdictNotBlocked: signDone, VerdictBlocked: signFailed, VerdictNotOnDocker: signInfo, VerdictUnknown: signWarning}
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
