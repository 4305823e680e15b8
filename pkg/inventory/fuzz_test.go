package inventory

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// FuzzFromNode: whatever a node says of itself, its row is bounded and can be shown, and there is advice.
func FuzzFromNode(f *testing.F) {
	f.Add("docker://20.10.24", "v1.23.17", "Debian", "done", "True")
	f.Add("docker://\x1b[2J", "v1.99999999999999999999", strings.Repeat("x", 1000), "broken", "False")
	f.Add("containerd://1.6.20~ds1", "v1.37.0", "a\nb", "rolling-back", "")
	f.Fuzz(func(t *testing.T, runtime, kubelet, text, phase, ready string) {
		node := &corev1.Node{}
		node.Annotations = map[string]string{
			nodestate.AnnotationPhase: phase, nodestate.AnnotationMessage: text, nodestate.AnnotationFrom: text, nodestate.AnnotationTo: text, nodestate.AnnotationRun: text,
			nodestate.AnnotationCRISocket: text, nodestate.AnnotationAgentImage: text,
		}
		info := &node.Status.NodeInfo
		info.ContainerRuntimeVersion, info.KubeletVersion, info.OSImage, info.KernelVersion, info.Architecture = runtime, kubelet, text, text, text
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: text}}
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionStatus(ready)}}
		row := FromNode(node)
		for _, field := range reflect.VisibleFields(reflect.TypeOf(row)) {
			value := reflect.ValueOf(row).FieldByIndex(field.Index)
			if field.Type.Kind() != reflect.String || field.Name == "Ready" { // the API server knows the values of Ready
				continue
			}
			if shown := value.String(); len(shown) > 1<<10 || untrusted.Line(shown, 1<<10) != shown {
				t.Errorf("%s: %q", field.Name, shown)
			}
		}
		if advice := row.Advice.Text; len(advice) > 2<<10 || strings.ContainsAny(advice, "\n\x1b") {
			t.Errorf("advice %q", advice)
		}
		_, _ = row.Status(), Summary([]Row{row})
	})
}
