package inspect

import (
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
)

func TestOtherProcess(t *testing.T) {
	for _, test := range []struct {
		name             string
		pid              string
		ppid             int
		namespace, other string
		want             bool
	}{
		{"a second one", "20", 1, "host", "/usr/local/bin/kubelet", true},
		{"a child that is about to be another program", "20", 10, "host", "/usr/bin/kubelet", false},
		{"a container's", "20", 1, "kind", "/usr/bin/kubelet", false},
		{"another program", "20", 1, "host", "/usr/bin/kubelet-helper", false},
	} {
		f := nodetest.NewProc(t)
		f.Add("10", 1, "0::/\n", "host", "/usr/bin/kubelet")
		f.Add(test.pid, test.ppid, "0::/\n", test.namespace, test.other)
		got, err := otherProcess(f.Dir, "kubelet", 10)
		if err != nil || (got != nil) != test.want || got != nil && got.PID != 20 {
			t.Errorf("%s: %+v, %v", test.name, got, err)
		}
	}
}
