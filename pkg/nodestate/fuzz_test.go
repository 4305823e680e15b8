package nodestate

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// FuzzRead: whatever annotations say, what is read of them is bounded and can be shown, and a run's ID is one.
func FuzzRead(f *testing.F) {
	f.Add("done", "20240131-120000-abcde", "docker://20.10.24", "dns,volume")
	f.Add("rolling-back\n", "../../x", "\x1b[2J", strings.Repeat("x,", 1000))
	f.Fuzz(func(t *testing.T, phase, run, text, names string) {
		node := &corev1.Node{}
		node.Annotations = map[string]string{
			AnnotationPhase: phase, AnnotationRun: run, AnnotationFrom: text, AnnotationTo: text, AnnotationMessage: text, AnnotationCRISocket: text,
			AnnotationAgentImage: text, AnnotationFailedBefore: names, AnnotationOldCRISocket: text, AnnotationFromEndpoint: text,
		}
		info := Read(node)
		for _, field := range reflect.VisibleFields(reflect.TypeOf(info)) {
			if field.Type.Kind() != reflect.String || field.Name == "WasUnschedulable" || field.Name == "Took" { // which are compared and parsed
				continue
			}
			if shown := reflect.ValueOf(info).FieldByIndex(field.Index).String(); len(shown) > maxMessage || untrusted.Line(shown, maxMessage) != shown {
				t.Errorf("%s: %q", field.Name, shown)
			}
		}
		if _, err := protocol.ParseRun(info.Run); info.Run != "" && err != nil || info.BadRun == (info.Run != "") && run != "" {
			t.Errorf("run %q, bad %t", info.Run, info.BadRun)
		}
		if len(info.FailedBefore) > maxNames {
			t.Errorf("%d names", len(info.FailedBefore))
		}
		for _, name := range info.FailedBefore {
			if len(name) > maxName || untrusted.Line(name, maxName) != name || strings.Contains(name, ",") {
				t.Errorf("name %q", name)
			}
		}
		_ = info.IsRunOpen()
	})
}

// FuzzRunBegun: a run whose ID says when it was begun is one that NewRun makes.
func FuzzRunBegun(f *testing.F) {
	f.Add("20240131-120000-abcde")
	f.Add("r1")
	f.Fuzz(func(t *testing.T, run string) {
		if begun, ok := RunBegun(run); ok && begun.Format(runTime) != run[:len(runTime)] {
			t.Errorf("%q was begun at %s", run, begun)
		}
	})
}
