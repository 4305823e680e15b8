package nodeswitch

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// Times are how long the stages of a switch took, or are expected to take.
type Times struct {
	Prepare, Drain, Cutover, Verify time.Duration
}

// Total is from the claim to the uncordon.
func (t Times) Total() time.Duration { return t.Prepare + t.OutOfService() }

// OutOfService is from the cordon to the uncordon.
func (t Times) OutOfService() time.Duration { return t.Drain + t.Cutover + t.Verify }

// fields are the stages in order, by their names.
func (t *Times) fields() []struct {
	stage Stage
	took  *time.Duration
} {
	return []struct {
		stage Stage
		took  *time.Duration
	}{{StagePrepare, &t.Prepare}, {StageDrain, &t.Drain}, {StageCutover, &t.Cutover}, {StageVerify, &t.Verify}}
}

// timesOf takes the times of a switch that went through without a pause; ok is false for another.
func timesOf(stages []StageTime) (t Times, ok bool) {
	for _, field := range t.fields() {
		at := slices.IndexFunc(stages, func(s StageTime) bool { return s.Stage == field.stage })
		if at < 0 {
			return Times{}, false
		}
		*field.took = stages[at].Elapsed
	}
	return t, true
}

// String is as nodestate.AnnotationTook holds it: "prepare=41s,drain=3s,cutover=21s,verify=12s".
func (t Times) String() string {
	var parts []string
	for _, field := range t.fields() {
		parts = append(parts, fmt.Sprintf("%s=%s", field.stage, field.took.Round(time.Second)))
	}
	return strings.Join(parts, ",")
}

// maxTook is above what any stage may take: the annotation is in the node's own hands.
const maxTook = 24 * time.Hour

// parseTimes reads what String wrote; anything else is not ok.
func parseTimes(text string) (t Times, ok bool) {
	values := map[string]time.Duration{}
	for part := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(part, "=")
		took, err := time.ParseDuration(value)
		if err != nil || took < 0 || took > maxTook {
			return Times{}, false
		}
		values[name] = took
	}
	for _, field := range t.fields() {
		took, there := values[string(field.stage)]
		if !there {
			return Times{}, false
		}
		*field.took = took
	}
	return t, len(values) == len(t.fields())
}

// Measured are the medians of each stage over the nodes that were switched and say how long that took, and how many these are.
func Measured(nodes []corev1.Node) (Times, int) {
	var all []Times
	for i := range nodes {
		if t, ok := parseTimes(nodestate.Read(&nodes[i]).Took); ok {
			all = append(all, t)
		}
	}
	if len(all) == 0 {
		return Times{}, 0
	}
	var medians Times
	for i, field := range medians.fields() {
		var took []time.Duration
		for _, t := range all {
			took = append(took, *t.fields()[i].took)
		}
		slices.Sort(took)
		*field.took = took[len(took)/2]
	}
	return medians, len(all)
}
