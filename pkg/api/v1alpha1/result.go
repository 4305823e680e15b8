package v1alpha1

// The kinds of the objects that switch and rollback print.
const (
	KindSwitchResult   = "SwitchResult"
	KindRollbackResult = "RollbackResult"
)

// The values of NodeResult.Result.
const (
	ResultDone     = "done"
	ResultSkipped  = "skipped"   // there was nothing to do
	ResultPlanned  = "planned"   // by a dry run
	ResultFailed   = "failed"    // Error says why, and in which state the node is
	ResultBlocked  = "blocked"   // PodDisruptionBudgets kept it from being drained at each attempt; it serves as before
	ResultNotBegun = "not-begun" // Reason says why
)

// Result is what `switch -o json` and `rollback -o json` print, whatever failed.
type Result struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"` // SwitchResult or RollbackResult
	// Rollout is the name of the rollout's record; absent where a single node is moved.
	Rollout string       `json:"rollout,omitempty"`
	Nodes   []NodeResult `json:"nodes"`
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
