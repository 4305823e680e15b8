package rolloutrecord

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
)

// Object is the entry as the commands print it with -o json and yaml.
func (e *Entry) Object() v1alpha1.Rollout {
	const form = "2006-01-02T15:04:05Z"
	o := v1alpha1.Rollout{
		APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.KindRollout,
		Metadata: v1alpha1.RolloutMetadata{Name: e.Name, CreationTimestamp: e.Created.UTC().Format(form)},
		Spec:     v1alpha1.RolloutSpec(e.Spec),
		Status: v1alpha1.RolloutStatus{
			State: string(e.State), Reason: e.Why(), ContinuedBy: e.ContinuedBy, Counts: v1alpha1.RolloutCounts(e.Status.Counts),
		},
	}
	for _, failure := range e.Status.Failures {
		o.Status.Failures = append(o.Status.Failures, v1alpha1.RolloutFailure(failure))
	}
	if e.Status.Ended != nil {
		o.Status.Ended = e.Status.Ended.UTC().Format(form)
	}
	return o
}

// Why says why nodes are left or do not start, "" if there is nothing to say.
func (e *Entry) Why() string {
	switch {
	case e.State == Continued:
		return "rollout " + e.ContinuedBy + " continued it"
	case e.State == DriverLost:
		return "its driver does not report any more"
	case e.State == Aborting, e.State == State(Aborted) && e.Status.Outcome == "":
		return "aborted by " + e.Control.By
	case e.State == Pausing, e.State == Paused:
		return "paused by " + e.Control.By
	}
	return cmp.Or(e.Status.Reason, e.Status.Waiting)
}

// Conclusion says how a rollout ended, with the reason.
func (e *Entry) Conclusion() string {
	text := map[State]string{
		State(Completed): "it is completed", State(Failed): "it failed", State(Aborted): "it was aborted", State(Interrupted): "it was interrupted",
		DriverLost: "its driver does not report any more", Continued: "its driver was lost",
	}[e.State]
	if why := e.Why(); why != "" && e.State != DriverLost {
		text += ": " + why
	}
	return text
}

// Sentence says how far a rollout is.
func (e *Entry) Sentence() string {
	c := e.Status.Counts
	parts := []string{fmt.Sprintf("%d of %d nodes done", c.Done, e.Spec.Nodes)}
	for _, part := range []struct {
		count int
		what  string
	}{{c.Skipped, "skipped"}, {c.Failed, "failed"}, {c.Blocked, "blocked by PodDisruptionBudgets"}, {c.InFlight, "in flight"}, {c.Waiting, "waiting"}} {
		if part.count > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.count, part.what))
		}
	}
	text := fmt.Sprintf("rollout %q %s: %s", e.Name, strings.ToLower(string(e.State)), strings.Join(parts, ", "))
	if e.State == DriverLost {
		text = fmt.Sprintf("rollout %q has no driver any more; when it reported last: %s", e.Name, strings.Join(parts, ", "))
	}
	if why := e.Why(); why != "" && e.State != DriverLost {
		text += " (" + why + ")"
	}
	return text
}
