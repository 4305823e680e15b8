package facts

import (
	"errors"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
)

// TestFits is the table of CRI versions by kubelet.
func TestFits(t *testing.T) {
	for _, test := range []struct {
		kubelet, containerd string
		ok                  bool
	}{
		{"v1.18.0", "1.7.2", true},
		{"v1.22.17", "1.6.20~ds1", true},
		{"v1.22.17", "2.0.0", false},
		{"v1.23.17", "2.4.2", true},
		{"v1.23.17", "1.5.18", false},
		{"v1.37.2", "1.6.0", true},
		{"v1.37.2", "2.4.2+unknown", true},
	} {
		k, err := kubelet.ParseVersion(test.kubelet)
		if err != nil {
			t.Fatal(err)
		}
		c, err := containerd.ParseVersion("containerd x " + test.containerd)
		if err != nil {
			t.Fatal(err)
		}
		err = Fits(k, c)
		if (err == nil) != test.ok {
			t.Errorf("kubelet %s, containerd %s: %v", test.kubelet, test.containerd, err)
		}
		var hint interface{ Hint() string }
		if err != nil && (!errors.As(err, &hint) || hint.Hint() == "") {
			t.Errorf("%v has no hint", err)
		}
	}
}
