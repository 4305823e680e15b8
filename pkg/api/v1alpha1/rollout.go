package v1alpha1

// The kinds of the objects of `kubectl runtime rollout`.
const (
	KindRollout     = "Rollout"
	KindRolloutList = "RolloutList"
)

// RolloutList is what `kubectl runtime rollout list -o json` prints.
type RolloutList struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Items      []Rollout `json:"items"`
}

// Rollout is one rollout, as `kubectl runtime rollout status -o json` prints it.
type Rollout struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   RolloutMetadata `json:"metadata"`
	Spec       RolloutSpec     `json:"spec"`
	Status     RolloutStatus   `json:"status"`
}

// RolloutMetadata is a rollout's name and when it was made, in RFC 3339.
type RolloutMetadata struct {
	Name              string `json:"name"`
	CreationTimestamp string `json:"creationTimestamp"`
}

// RolloutSpec is what was asked for.
type RolloutSpec struct {
	// Operation is switch or rollback.
	Operation string `json:"operation"`
	// Selection are the arguments that chose the nodes, Flags the other ones.
	Selection []string `json:"selection"`
	Flags     []string `json:"flags,omitempty"`
	// Nodes is how many nodes were selected.
	Nodes          int    `json:"nodes"`
	MaxUnavailable string `json:"maxUnavailable"`
	MaxFailures    int    `json:"maxFailures"`
	DrainAttempts  int    `json:"drainAttempts"`
	Image          string `json:"image"`
	Owner          string `json:"owner"`
	// Version is that of the program.
	Version string `json:"version"`
}

// RolloutStatus is how far a rollout is.
type RolloutStatus struct {
	// State is Running, Pausing, Paused, Aborting, Completed, Failed, Aborted, Interrupted, DriverLost or Continued.
	State string `json:"state"`
	// Reason says why nodes are left or do not start.
	Reason string `json:"reason,omitempty"`
	// ContinuedBy is the later rollout of the same nodes.
	ContinuedBy string           `json:"continuedBy,omitempty"`
	Counts      RolloutCounts    `json:"counts"`
	Failures    []RolloutFailure `json:"failures,omitempty"`
	// Ended is in RFC 3339.
	Ended string `json:"ended,omitempty"`
}

// RolloutCounts are the selected nodes by what became of them.
type RolloutCounts struct {
	Done     int `json:"done"`
	Failed   int `json:"failed"`
	Blocked  int `json:"blocked"`
	Skipped  int `json:"skipped"`
	InFlight int `json:"inFlight"`
	Waiting  int `json:"waiting"`
}

// RolloutFailure is a node that failed, one of the first 20.
type RolloutFailure struct {
	Node   string `json:"node"`
	Result string `json:"result"`
	Reason string `json:"reason,omitempty"`
}
