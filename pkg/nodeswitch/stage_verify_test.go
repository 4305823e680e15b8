package nodeswitch

import (
	"context"
	"fmt"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// TestHostIsVerified by the cutover's pod, and by a Job of its own where that pod ends without having asked for it.
func TestHostIsVerified(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	for _, test := range []struct {
		name string
		old  bool
	}{{name: "verified-by-the-cutover"}, {name: "verified-by-its-job", old: true}} {
		h := hollow.New(t, s, test.name)
		h.OldAgent = test.old
		h.Script[protocol.PhaseVerify] = func(h *hollow.Node, spec protocol.Spec) {
			_, err := h.Client.BatchV1().Jobs(nodejob.Namespace).Get(context.Background(), nodejob.JobName(spec.Node, spec.Run, spec.Phase), metav1.GetOptions{})
			if err != nil && !apierrors.IsNotFound(err) || (err == nil) != test.old {
				t.Errorf("%s: a Job for the verification: %v", test.name, err)
			}
			h.Succeed(spec)
		}
		if _, err := newRollout(s, &recorder{}).Switch(t.Context(), test.name); err != nil {
			t.Error(err)
		}
		if fmt.Sprint(h.Phases()) != "[prepare cutover verify]" {
			t.Errorf("%s: %v", test.name, h.Phases())
		}
		nothingLeft(t, s, test.name)
	}
}
