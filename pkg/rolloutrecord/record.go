// Package rolloutrecord is the record of a rollout in the cluster: a ConfigMap with what was asked for, how far it is, and what people want of it since
// (pause, abort), and a Lease that its driver renews. The driver of a rollout writes it, the commands of `kubectl runtime rollout` read it and write what people
// want. The truth about a node is not here but on the node. What is read is bounded and can be shown: others may write ConfigMaps.
package rolloutrecord

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// Spec is what was asked for. It does not change.
type Spec struct {
	// Operation is the command, "switch" or "rollback".
	Operation string `json:"operation"`
	// Selection are the arguments that chose the nodes: names, or --selector or --all. Flags are the other ones that were given.
	Selection []string `json:"selection"`
	Flags     []string `json:"flags,omitempty"`
	// Nodes is how many nodes were selected.
	Nodes          int    `json:"nodes"`
	MaxUnavailable string `json:"maxUnavailable"`
	MaxFailures    int    `json:"maxFailures"`
	DrainAttempts  int    `json:"drainAttempts"`
	Image          string `json:"image"`
	// Owner is who started it, "alice@laptop", and Version that of the program.
	Owner   string `json:"owner"`
	Version string `json:"version"`
}

// Counts are the selected nodes by what became of them.
type Counts struct {
	Done     int `json:"done"`
	Failed   int `json:"failed"`
	Blocked  int `json:"blocked"`
	Skipped  int `json:"skipped"`
	InFlight int `json:"inFlight"`
	Waiting  int `json:"waiting"`
}

// Failure is a node that failed.
type Failure struct {
	Node   string `json:"node"`
	Result string `json:"result"`
	Reason string `json:"reason,omitempty"`
}

// Outcome is how a rollout ended.
type Outcome string

// The outcomes. Completed: nothing failed, and no node is left.
const (
	Completed   Outcome = "Completed"
	Failed      Outcome = "Failed"
	Aborted     Outcome = "Aborted"
	Interrupted Outcome = "Interrupted"
)

// Status is how far a rollout is. Its driver alone writes it.
type Status struct {
	Counts   Counts    `json:"counts"`
	Failures []Failure `json:"failures,omitempty"`
	// Waiting is why no node starts now, although some wait.
	Waiting string `json:"waiting,omitempty"`
	// Outcome is empty while it runs. Reason says why nodes were left.
	Outcome Outcome    `json:"outcome,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	Ended   *time.Time `json:"ended,omitempty"`
}

// Control is what people want of a rollout. Nobody takes an abort back.
type Control struct {
	Paused  bool       `json:"paused,omitempty"`
	Aborted bool       `json:"aborted,omitempty"`
	By      string     `json:"by,omitempty"`
	At      *time.Time `json:"at,omitempty"`
}

// Record is one rollout.
type Record struct {
	Name    string
	UID     types.UID
	Created time.Time
	Spec    Spec
	Status  Status
	Control Control
}

// The bounds of what is read, in bytes and entries.
const (
	maxSpecBytes   = 512 << 10
	maxStatusBytes = 64 << 10
	maxSelection   = 5000
	maxFlags       = 100
	maxArgument    = 4 << 10
	maxWord        = 512
	maxWho         = 128
	maxFailures    = 20
	maxReason      = 256
	maxCount       = 1_000_000
)

// namePattern is that of a record's name: the operation and a suffix. No other ConfigMap has such a name.
var namePattern = regexp.MustCompile(`^(switch|rollback)-[a-z0-9]{5}$`)

// ParseName reads the name of a rollout as people give it: NAME or rollout/NAME.
func ParseName(text string) (string, error) {
	name := strings.TrimPrefix(text, "rollout/")
	if !namePattern.MatchString(name) {
		return "", fmt.Errorf("%q is not the name of a rollout: give one as in switch-x7k2p", untrusted.Line(text, maxWho))
	}
	return name, nil
}

// The keys of the ConfigMap's data. Each has one writer: who creates the record, its driver, and people.
const (
	keySpec    = "spec"
	keyStatus  = "status"
	keyControl = "control"
)

// label marks the ConfigMaps that are records.
const label = nodestate.Prefix + "rollout"

// read reads a record.
func read(object *corev1.ConfigMap) (*Record, error) {
	r := &Record{Name: object.Name, UID: object.UID, Created: object.CreationTimestamp.Time}
	err := errors.Join(decode(object.Data, keySpec, maxSpecBytes, &r.Spec), decode(object.Data, keyStatus, maxStatusBytes, &r.Status),
		decode(object.Data, keyControl, maxStatusBytes, &r.Control))
	switch {
	case !namePattern.MatchString(object.Name):
		return nil, fmt.Errorf("rollout %s: that is no name of a rollout", untrusted.Line(object.Name, maxWho))
	case err != nil:
		return nil, fmt.Errorf("rollout %s: %w", object.Name, err)
	case !strings.HasPrefix(object.Name, r.Spec.Operation+"-"):
		return nil, fmt.Errorf("rollout %s: its operation is %q", object.Name, untrusted.Line(r.Spec.Operation, maxWho))
	case len(r.Spec.Selection) == 0 || len(r.Spec.Selection) > maxSelection || len(r.Spec.Flags) > maxFlags:
		return nil, fmt.Errorf("rollout %s: it has %d arguments and %d flags", object.Name, len(r.Spec.Selection), len(r.Spec.Flags))
	}
	r.bound()
	return r, nil
}

func decode(data map[string]string, key string, most int, into any) error {
	text := data[key]
	if text == "" && key != keySpec {
		return nil
	}
	if len(text) > most {
		return fmt.Errorf("its %s has more than %d bytes", key, most)
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("its %s cannot be read: %s", key, untrusted.Line(err.Error(), maxReason))
	}
	return nil
}

// bound makes all that was read presentable.
func (r *Record) bound() {
	line := func(text *string, most int) { *text = untrusted.Line(*text, most) }
	for _, list := range [][]string{r.Spec.Selection, r.Spec.Flags} {
		for i := range list {
			line(&list[i], maxArgument)
		}
	}
	line(&r.Spec.MaxUnavailable, maxWho)
	line(&r.Spec.Image, maxWord)
	line(&r.Spec.Owner, maxWho)
	line(&r.Spec.Version, maxWho)
	line(&r.Control.By, maxWho)
	line(&r.Status.Waiting, maxWord)
	line(&r.Status.Reason, maxWord)
	c := &r.Status.Counts
	for _, count := range []*int{&r.Spec.Nodes, &r.Spec.MaxFailures, &r.Spec.DrainAttempts, &c.Done, &c.Failed, &c.Blocked, &c.Skipped, &c.InFlight, &c.Waiting} {
		*count = min(max(*count, 0), maxCount)
	}
	r.Status.Failures = r.Status.Failures[:min(len(r.Status.Failures), maxFailures)]
	for i := range r.Status.Failures {
		f := &r.Status.Failures[i]
		line(&f.Node, maxWord)
		line(&f.Result, maxWho)
		line(&f.Reason, maxReason)
	}
	if !slices.Contains([]Outcome{"", Completed, Failed, Aborted, Interrupted}, r.Status.Outcome) {
		r.Status.Outcome = Failed
	}
}

// State is what a rollout does.
type State string

// The states of a rollout that has not ended; one that has has its Outcome.
const (
	Running State = "Running"
	// Pausing and Aborting: nodes are in flight, and no other starts.
	Pausing  State = "Pausing"
	Paused   State = "Paused"
	Aborting State = "Aborting"
	// DriverLost: nobody drives it any more. Nodes that were in flight are ended or undone by their hosts.
	DriverLost State = "DriverLost"
	// Continued: the same nodes were given to a later rollout after the driver was lost.
	Continued State = "Continued"
)

// State is what the rollout does; driven says whether its driver reports.
func (r *Record) State(driven bool) State {
	switch {
	case r.Status.Outcome != "":
		return State(r.Status.Outcome)
	case !driven && r.Control.Aborted:
		return State(Aborted)
	case !driven:
		return DriverLost
	case r.Control.Aborted:
		return Aborting
	case r.Control.Paused && r.Status.Counts.InFlight > 0:
		return Pausing
	case r.Control.Paused:
		return Paused
	}
	return Running
}

// Ended reports whether a rollout in this state does nothing any more.
func (s State) Ended() bool {
	switch s {
	case Running, Pausing, Paused, Aborting:
		return false
	default:
		return true
	}
}
