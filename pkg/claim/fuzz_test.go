package claim

import (
	"math"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// FuzzForeign: whoever wrote a Lease, what is shown of it is one line.
func FuzzForeign(f *testing.F) {
	f.Add("alice@laptop/1-abc", "switch", int64(1e9), int32(60))
	f.Add("\x1b[2J\nhint: x", "\x1b[2J", int64(math.MinInt64), int32(math.MinInt32))
	f.Fuzz(func(t *testing.T, holder, operation string, renewed int64, seconds int32) {
		lease := &coordinationv1.Lease{}
		lease.Annotations = map[string]string{AnnotationOperation: operation}
		lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds = &holder, &seconds
		lease.Spec.RenewTime = ptr.To(metav1.NewMicroTime(time.Unix(renewed, 0)))
		other := Foreign(lease, "bob")
		if other == nil {
			return
		}
		if shown := other.Error(); len(shown) > 2*maxHolder || untrusted.Line(shown, 2*maxHolder) != shown {
			t.Errorf("%q", shown)
		}
	})
}
