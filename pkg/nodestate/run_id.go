package nodestate

import (
	"time"

	"k8s.io/apimachinery/pkg/util/rand"
)

// runTime is how a run's ID begins.
const runTime = "20060102-150405"

// NewRun is a run's ID: its time of birth, for people, and a suffix.
func NewRun(now time.Time) string {
	return now.UTC().Format(runTime) + "-" + rand.String(5)
}

// RunBegun is when a run was begun, as its ID tells.
func RunBegun(run string) (begun time.Time, ok bool) {
	if len(run) < len(runTime) {
		return time.Time{}, false
	}
	begun, err := time.Parse(runTime, run[:len(runTime)])
	return begun, err == nil
}
