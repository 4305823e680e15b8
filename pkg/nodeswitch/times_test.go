package nodeswitch

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// TestTimes: what a run leaves on its node is read back, and anything else is not taken for it.
func TestTimes(t *testing.T) {
	stages := []StageTime{{StageClaim, time.Second}, {StagePrepare, 41 * time.Second}, {StageDrain, 2600 * time.Millisecond}, {StageCutover, 21 * time.Second}, {StageVerify, 75 * time.Second}}
	times, ok := timesOf(stages)
	if text := times.String(); !ok || text != "prepare=41s,drain=3s,cutover=21s,verify=1m15s" {
		t.Errorf("%q, %t", text, ok)
	}
	back, ok := parseTimes(times.String())
	if want := (Times{41 * time.Second, 3 * time.Second, 21 * time.Second, 75 * time.Second}); !ok || back != want || back.Total() != 140*time.Second || back.OutOfService() != 99*time.Second {
		t.Errorf("%+v, %t", back, ok)
	}
	if _, ok := timesOf(stages[3:]); ok {
		t.Error("a run that was resumed has no times of all stages")
	}
	for _, text := range []string{"", "x", "prepare=1s", "prepare=1s,drain=1s,cutover=1s,verify=-1s", "prepare=1s,drain=1s,cutover=1s,verify=1s,more=1s", "prepare=1s,prepare=1s,drain=1s,cutover=1s"} {
		if _, ok := parseTimes(text); ok {
			t.Errorf("%q was taken for times", text)
		}
	}
}

func TestMeasured(t *testing.T) {
	took := func(text string) corev1.Node {
		return corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{nodestate.AnnotationTook: text}}}
	}
	got, n := Measured([]corev1.Node{
		{}, took("nonsense"), took("prepare=9s,drain=1s,cutover=30s,verify=5s"), took("prepare=1s,drain=2s,cutover=10s,verify=5s"), took("prepare=2s,drain=600s,cutover=20s,verify=5s"),
	})
	if want := (Times{2 * time.Second, 2 * time.Second, 20 * time.Second, 5 * time.Second}); got != want || n != 3 {
		t.Errorf("%+v of %d", got, n)
	}
	if _, n := Measured(nil); n != 0 {
		t.Error("measured on no node")
	}
}
