package status

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestReadTable(t *testing.T) {
	const columns = `"columnDefinitions":[{"name":"Name"},{"name":"Status"},{"name":"Roles"},{"name":"Age"},{"name":"Version"},` +
		`{"name":"Internal-IP"},{"name":"External-IP"},{"name":"OS-Image"},{"name":"Kernel-Version"},{"name":"Container-Runtime"}]`
	row := func(status, kernel, runtime string) string {
		return `{"kind":"Table","metadata":{"continue":"c"},` + columns + `,"rows":[{"cells":["n","` + status + `","<none>","1d","v1.23.17","10.0.0.1","<none>","Debian","` +
			kernel + `","` + runtime + `"],"object":{"metadata":{"name":"n","labels":{"kubernetes.io/arch":"amd64"},"annotations":{"a":"b"}}}}]}`
	}
	for _, test := range []struct {
		text, ready, kernel, runtime string
		cordoned                     bool
	}{
		{row("Ready", "6.1.0-18-amd64", "docker://20.10.24"), "True", "6.1.0-18-amd64", "docker://20.10.24", false},
		{row("NotReady,SchedulingDisabled", "6.1.0-18-amd64 (amd64)", "containerd://1.6.20"), "False", "6.1.0-18-amd64", "containerd://1.6.20", true},
		{row("Unknown", "<unknown>", "<unknown>"), "", "", "", false},
	} {
		nodes, meta, err := readTable([]byte(test.text))
		if err != nil || len(nodes) != 1 || meta.Continue != "c" {
			t.Fatalf("%s: %v, %v", test.text, nodes, err)
		}
		node := nodes[0]
		var ready corev1.ConditionStatus
		for _, condition := range node.Status.Conditions {
			ready = condition.Status
		}
		info := node.Status.NodeInfo
		if string(ready) != test.ready || info.KernelVersion != test.kernel || info.ContainerRuntimeVersion != test.runtime || node.Spec.Unschedulable != test.cordoned ||
			node.Name != "n" || node.Annotations["a"] != "b" || info.Architecture != "amd64" || info.KubeletVersion != "v1.23.17" {
			t.Errorf("%s: %+v", test.text, node)
		}
	}
	for _, text := range []string{
		`{"kind":"NodeList","metadata":{},"items":[{"metadata":{"name":"n"}}]}`,
		`{"kind":"Table","columnDefinitions":[{"name":"Name"}],"rows":[{"cells":["n"],"object":{"metadata":{"name":"n"}}}]}`,
		`{"kind":"Table",` + columns + `,"rows":[{"cells":["n"]}]}`,
	} {
		if nodes, _, err := readTable([]byte(text)); !errors.Is(err, errNoTable) {
			t.Errorf("%s: %v, %v", text, nodes, err)
		}
	}
	if nodes, _, err := readTable([]byte(`{"kind":"Table",` + columns + `,"rows":[]}`)); err != nil || len(nodes) != 0 {
		t.Errorf("no nodes: %v, %v", nodes, err)
	}
	if _, _, err := readTable([]byte("no")); err == nil {
		t.Error("no JSON was read")
	}
}
