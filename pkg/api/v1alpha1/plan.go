package v1alpha1

import "github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"

// KindPlan is the kind of the object that plan prints.
const KindPlan = "Plan"

// Plan is what `plan -o json` prints.
type Plan struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Nodes      []PlanNode    `json:"nodes"`
	Findings   []PlanFinding `json:"findings"`
	// Order is that in which the nodes that are on Docker start.
	Order []string `json:"order,omitempty"`
	// Expected is how long that takes; it is left out where no switch in the cluster has been measured.
	Expected *PlanTimes `json:"expected,omitempty"`
	// IgnoredChecks were not run.
	IgnoredChecks []string `json:"ignoredChecks,omitempty"`
	// HostsInspected tells whether an agent has looked at the host of every node that is on Docker; each node has it for itself.
	HostsInspected bool `json:"hostsInspected"`
	// Notes say what was not looked at, a sentence each.
	Notes []string `json:"notes,omitempty"`
	// Errors says why the plan is not whole, a sentence each. Nothing follows from missing findings then.
	Errors []string `json:"errors,omitempty"`
}

// PlanTimes are expected times in seconds: medians of MeasuredNodes, which were switched without a pause.
type PlanTimes struct {
	MeasuredNodes       int64 `json:"measuredNodes"`
	PrepareSeconds      int64 `json:"prepareSeconds"`
	OutOfServiceSeconds int64 `json:"outOfServiceSeconds"`
	NodeSeconds         int64 `json:"nodeSeconds"`
	TotalSeconds        int64 `json:"totalSeconds"`
}

// PlanFinding is one check that hit one object on one node, with the check's texts.
type PlanFinding struct {
	// Check is the check's ID (docs/checks.md), Severity blocker, warning or info.
	Check    string `json:"check"`
	Category string `json:"category"`
	Severity string `json:"severity"`
	// Node is empty for what is not on a node yet.
	Node string `json:"node"`
	// Kind, Namespace and Name are those of the pod's owner, and empty for the node itself.
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Detail    string `json:"detail"`
	// Hint is what to do about this one, where the check's remedy is not enough.
	Hint   string `json:"hint,omitempty"`
	Title  string `json:"title"`
	Why    string `json:"why"`
	Remedy string `json:"remedy"`
}

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
	// HostInspected tells whether an agent has looked at the host, HostNote why it has not where it should have.
	HostInspected bool   `json:"hostInspected"`
	HostNote      string `json:"hostNote,omitempty"`
	// Steps are those of a switch, and Files what they change, in their order. Files are unknown where something on the host blocks.
	Steps []protocol.PlanStep   `json:"steps,omitempty"`
	Files []protocol.FileChange `json:"files,omitempty"`
}
