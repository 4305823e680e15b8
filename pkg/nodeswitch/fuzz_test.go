package nodeswitch

import (
	"bytes"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// FuzzTimes: whatever the annotation says, a stage took no negative time, and what was read is written alike.
func FuzzTimes(f *testing.F) {
	f.Add("prepare=41s,drain=3s,cutover=21s,verify=12s")
	f.Add("prepare=-1s,drain=9999999h,cutover=1e9s,verify=")
	f.Fuzz(func(t *testing.T, text string) {
		times, ok := parseTimes(text)
		if !ok {
			return
		}
		if times.Total() < 0 || times.Total() > 4*maxTook {
			t.Errorf("%q took %s", text, times.Total())
		}
		if again, ok := parseTimes(times.String()); !ok || (again.Total()-times.Total()).Abs() > 4*time.Second {
			t.Errorf("%q became %q", text, again)
		}
	})
}

// FuzzHostPlan: whatever an agent reports, a plan is bounded.
func FuzzHostPlan(f *testing.F) {
	event := func(more string) string { return `{"v":1,"seq":1,"run":"r1","phase":"plan",` + more + "}\n" }
	f.Add([]byte(event(`"finding":{"check":"host-disk","message":"m"}`) + event(`"planStep":{"id":"x"}`) + event(`"fileChange":{"diff":"a","continues":true}`) + event(`"fileChange":{"diff":"b"}`)))
	f.Add(bytes.Repeat([]byte(event(`"finding":{"check":"c"}`)), maxPlan+1))
	f.Fuzz(func(t *testing.T, log []byte) {
		plan := &HostPlan{}
		for line := range bytes.Lines(log) {
			if event, err := untrusted.Event(line); err == nil {
				plan.take(event)
			}
		}
		if entries := len(plan.Findings) + len(plan.Steps) + len(plan.Files) + len(plan.parts); entries > maxPlan {
			t.Errorf("%d entries", entries)
		}
	})
}
