package nodeswitch

import (
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// TestCutoverWaits: the cutover's pod is on the node before it is cordoned, and begins when the node is drained. One that cannot be told
// is replaced by one that does not wait.
func TestCutoverWaits(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	for _, test := range []struct {
		name    string
		deaf    bool
		started string
	}{
		{name: "waits", started: "supervise; supervise --wait"},
		{name: "waits-deaf", deaf: true, started: "supervise; supervise --wait; supervise"},
	} {
		h := hollow.New(t, s, test.name)
		h.Deaf = test.deaf
		createPod(t, s, test.name, test.name+"-app")
		h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
			cordoned := slices.Contains(h.Cordons(), true)
			if _, err := s.Client().CoreV1().Pods("default").Get(t.Context(), test.name+"-app", metav1.GetOptions{}); !cordoned || !apierrors.IsNotFound(err) {
				t.Errorf("%s: begun on a node that is cordoned: %t, with a pod to evict: %v", test.name, cordoned, err)
			}
			h.Succeed(spec)
		}
		if _, err := newRollout(s, &recorder{}).Switch(t.Context(), test.name); err != nil {
			t.Fatal(err)
		}
		if h.WaitedCordoned() {
			t.Errorf("%s: the pod that waits was started when the node was cordoned", test.name)
		}
		if started := strings.Join(h.Started(), "; "); started != test.started {
			t.Errorf("%s: started %q", test.name, started)
		}
		nothingLeft(t, s, test.name)
	}
}
