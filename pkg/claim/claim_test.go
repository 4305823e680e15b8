package claim

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	testclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

var server apiserver.Shared

func TestMain(m *testing.M) { os.Exit(server.Main(m)) }

// claims are those of one process.
func claims(t *testing.T, s *apiserver.Server) *Claims {
	t.Helper()
	_, err := s.Client().CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: nodejob.Namespace}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	return &Claims{Client: s.Client(), Clock: clock.RealClock{}, Holder: "tester@here/" + t.Name()}
}

func TestClaimIsRenewedAndLost(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	r := claims(t, s)
	held, ctx, err := r.Take(t.Context(), "renewed", "run-1", Switch, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	leases := s.Client().CoordinationV1().Leases(nodejob.Namespace)
	get := func() *coordinationv1.Lease {
		lease, err := leases.Get(t.Context(), "renewed", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return lease
	}
	first := get()
	if first.Annotations[AnnotationRun] != "run-1" || *first.Spec.HolderIdentity != r.Holder {
		t.Errorf("lease %v %v", first.Annotations, first.Spec)
	}
	deadline := time.Now().Add(2 * renewInterval)
	for get().Spec.RenewTime.Equal(first.Spec.RenewTime) {
		if time.Now().After(deadline) {
			t.Fatal("the claim is not renewed")
		}
		time.Sleep(200 * time.Millisecond)
	}
	for {
		other := get()
		other.Spec.HolderIdentity = ptr.To("bob@desk/1")
		if _, err := leases.Update(t.Context(), other, metav1.UpdateOptions{}); err == nil {
			break
		}
	}
	select {
	case <-ctx.Done():
		if !errors.Is(context.Cause(ctx), ErrLost) {
			t.Errorf("cause %v", context.Cause(ctx))
		}
	case <-time.After(2 * renewInterval):
		t.Error("the loss is not noticed")
	}
	if err := held.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if got := *get().Spec.HolderIdentity; got != "bob@desk/1" {
		t.Errorf("the release took the lease from %s", got)
	}
	if err := leases.Delete(t.Context(), "renewed", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

// TestRenewals: what is written within renewInterval of a renewal needs none, since nobody can have taken the claim. A machine that slept does not
// know that, whichever of its clocks stood still; and Prove asks in any case.
func TestRenewals(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	r := claims(t, s)
	fake := testclock.NewFakeClock(time.Now())
	r.Clock = fake
	held, _, err := r.Take(t.Context(), "thrifty", "run-1", Switch, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := held.Release(context.Background()); err != nil {
			t.Error(err)
		}
	})
	version := func() string {
		lease, err := ReadLease(t.Context(), s.Client(), "thrifty")
		if err != nil || lease == nil {
			t.Fatal(lease, err)
		}
		return lease.ResourceVersion
	}
	for _, test := range []struct {
		name string
		// at is when the claim was renewed last, before now.
		at    time.Duration
		do    func(context.Context) error
		renew bool
	}{
		{"just now", 0, held.Keep, false},
		{"a moment ago", renewInterval - time.Second, held.Keep, false},
		{"as long ago as is allowed", renewInterval, held.Keep, true},
		{"after a sleep", time.Hour, held.Keep, true},
		{"the clock was set back", -time.Hour, held.Keep, true},
		{"before what cannot be taken back", 0, held.Prove, true},
	} {
		fake.Step(time.Second) // or a renewal would change nothing
		held.mu.Lock()
		held.at = fake.Now().Add(-test.at)
		held.mu.Unlock()
		before := version()
		if err := test.do(t.Context()); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if got := version() != before; got != test.renew {
			t.Errorf("%s: renewed %t, want %t", test.name, got, test.renew)
		}
	}
	if ExpiryProof < 2*renewInterval {
		t.Errorf("a write has %s to arrive before another run may take the claim", ExpiryProof-renewInterval)
	}
}
