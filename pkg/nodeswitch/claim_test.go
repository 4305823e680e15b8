package nodeswitch

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// holdLease makes a claim of somebody else, renewed some time ago.
func holdLease(t *testing.T, s *apiserver.Server, node string, renewed time.Time) {
	t.Helper()
	keepOpen(t, s)
	_, err := s.Client().CoordinationV1().Leases(nodejob.Namespace).Create(t.Context(), &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: node, Annotations: map[string]string{claim.AnnotationOperation: string(claim.Rollback)}},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: ptr.To("alice@laptop/123-abc"), LeaseDurationSeconds: ptr.To[int32](60),
			AcquireTime: ptr.To(metav1.NewMicroTime(renewed.Add(-time.Hour))), RenewTime: ptr.To(metav1.NewMicroTime(renewed)),
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func TestForeignClaim(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "claimed")
	renewed := time.Now().Add(-10 * time.Second)
	holdLease(t, s, "claimed", renewed)
	t.Cleanup(func() {
		_ = s.Client().CoordinationV1().Leases(nodejob.Namespace).Delete(context.Background(), "claimed", metav1.DeleteOptions{})
	})
	_, err := newRollout(s, &recorder{}).Switch(t.Context(), "claimed")
	_ = wantError(t, err, OutcomeRefused, "alice@laptop is rolling it back since "+renewed.Add(-time.Hour).Local().Format("2006-01-02 15:04:05"))
	if strings.Contains(err.Error(), "123-abc") {
		t.Errorf("the error shows what is not for people: %v", err)
	}
	if node := getNode(t, s, "claimed"); node.Annotations[nodestate.AnnotationPhase] != "" || len(h.Phases()) > 0 {
		t.Errorf("the node was touched: %v, phases %v", node.Annotations, h.Phases())
	}
	lease, err := s.Client().CoordinationV1().Leases(nodejob.Namespace).Get(t.Context(), "claimed", metav1.GetOptions{})
	if err != nil || *lease.Spec.HolderIdentity != "alice@laptop/123-abc" {
		t.Errorf("the lease was touched: %v %v", lease, err)
	}
}

func TestExpiredClaimIsTakenOver(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	hollow.New(t, s, "expired")
	holdLease(t, s, "expired", time.Now().Add(-2*time.Minute))
	observer := &recorder{}
	if _, err := quickly(newRollout(s, observer)).Switch(t.Context(), "expired"); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"that claim seems to have ended: making sure for 30s that nobody renews it", "took the node over: alice@laptop is rolling it back since"} {
		if !observer.said(text) {
			t.Errorf("it was not said that %q", text)
		}
	}
	nothingLeft(t, s, "expired")
}

// TestLiveClaimOfASlowClock has a holder whose clock is two minutes behind, so that each of its renewals looks like the past.
func TestLiveClaimOfASlowClock(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "slow-clock")
	holdLease(t, s, "slow-clock", time.Now().Add(-2*time.Minute))
	leases := s.Client().CoordinationV1().Leases(nodejob.Namespace)
	observer := &recorder{onStage: func(Stage) {
		time.AfterFunc(time.Second, func() {
			lease, err := leases.Get(context.Background(), "slow-clock", metav1.GetOptions{})
			if err == nil {
				lease.Spec.RenewTime = ptr.To(metav1.NewMicroTime(time.Now().Add(-2 * time.Minute)))
				_, err = leases.Update(context.Background(), lease, metav1.UpdateOptions{})
			}
			if err != nil {
				t.Errorf("renew: %v", err)
			}
		})
	}}
	_, err := quickly(newRollout(s, observer)).Switch(t.Context(), "slow-clock")
	_ = wantError(t, err, OutcomeRefused, "alice@laptop is rolling it back since")
	if lease, err := leases.Get(t.Context(), "slow-clock", metav1.GetOptions{}); err != nil || *lease.Spec.HolderIdentity != "alice@laptop/123-abc" || len(h.Phases()) > 0 {
		t.Errorf("the claim was taken: %v %v, phases %v", lease, err, h.Phases())
	}
	if err := leases.Delete(t.Context(), "slow-clock", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

// roundTripper is a function as an http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// breaking is the body of a response whose connection breaks when requests fail.
type breaking struct {
	io.ReadCloser
	fail func() error
}

func (b breaking) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if broken := b.fail(); broken != nil {
		return 0, broken
	}
	return n, err
}

// breakWatches ends watches as soon as away says so: theirs are connections, too.
func breakWatches(next http.RoundTripper, away *atomic.Bool) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(request)
		if err != nil || !request.URL.Query().Has("watch") {
			return response, err
		}
		body := response.Body
		response.Body = breaking{body, func() error {
			if away.Load() {
				return errors.New("connection reset")
			}
			return nil
		}}
		go func() {
			for request.Context().Err() == nil && !away.Load() {
				time.Sleep(20 * time.Millisecond)
			}
			_ = body.Close()
		}()
		return response, nil
	})
}

// through has all of a Switcher's requests fail with what fail returns.
func through(t *testing.T, s *apiserver.Server, r *Switcher, fail func(*http.Request) error) *Switcher {
	t.Helper()
	config := apiserver.Transport(s.Admin(), func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(request *http.Request) (*http.Response, error) {
			if err := fail(request); err != nil {
				return nil, err
			}
			return next.RoundTrip(request)
		})
	})
	config.QPS, config.Burst = 1000, 2000
	return withConfig(t, r, config)
}

// withConfig has a Switcher use another config.
func withConfig(t *testing.T, r *Switcher, config *rest.Config) *Switcher {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	r.client, r.claims.Client, r.runner = client, client, &nodejob.Runner{Client: client, Config: config, Clock: r.clock}
	return r
}

// TestOutage takes the API server away from the plugin while the host cuts over: with one control plane node that is what happens
// when this very node is switched.
func TestOutage(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "outage")
	var away atomic.Bool
	h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
		away.Store(true)
		time.Sleep(2 * time.Second)
		h.Succeed(spec)
		time.Sleep(2 * time.Second)
		away.Store(false)
	}
	observer := &recorder{}
	config := apiserver.Transport(s.Admin(), func(next http.RoundTripper) http.RoundTripper {
		next = breakWatches(next, &away)
		return roundTripper(func(request *http.Request) (*http.Response, error) {
			if away.Load() {
				return nil, errors.New("connection refused")
			}
			return next.RoundTrip(request)
		})
	})
	r := withConfig(t, newRollout(s, observer), config)
	if _, err := r.Switch(t.Context(), "outage"); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"the API server does not answer, trying again: connection refused", "the API server answers again"} {
		if !observer.said(text) {
			t.Errorf("it was not said that %q", text)
		}
	}
}

// TestOutageOfTheCanary takes the API server away while the canary runs, which says nothing about the node.
func TestOutageOfTheCanary(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	keepOpen(t, s)
	for _, test := range []struct {
		name string
		// from is the first request that fails, once the way of all, always the way of these.
		from         func(*http.Request) bool
		once, always bool
		outage       bool
	}{
		{name: "canary-create", from: func(r *http.Request) bool {
			return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/pods")
		}, outage: true},
		{name: "canary-get", from: func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/pods/runtime-canary-") }, outage: true},
		{name: "canary-exec", from: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/exec") }, outage: true},
		{name: "canary-exec-once", from: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/exec") }, once: true},
		{name: "canary-exec-only", from: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/exec") }, always: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			hollow.New(t, s, test.name)
			var away atomic.Bool
			r := through(t, s, newRollout(s, &recorder{}), func(request *http.Request) error {
				hit := test.from(request)
				began := hit && away.CompareAndSwap(false, true)
				if began || away.Load() && !test.once && (hit || !test.always) {
					return errors.New("connection refused")
				}
				return nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			defer cancel()
			err := nodejob.Prover{Runner: r.runner}.Prove(ctx, nodejob.CanaryParams{Node: test.name, Run: "r1", Image: agentImage}, func(string) {})
			if (err == nil) != test.once || isOutage(err) != test.outage {
				t.Errorf("outage %t: %v", isOutage(err), err)
			}
			if err := newRollout(s, &recorder{}).runner.Remove(t.Context(), test.name); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAwaitClaims has a claim that ends while it is waited for, one that does not, and two that nobody renews, one of them of a holder
// whose clock is an hour ahead.
func TestAwaitClaims(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	leases := s.Client().CoordinationV1().Leases(nodejob.Namespace)
	for _, node := range []string{"free-soon", "held-on"} {
		holdLease(t, s, node, time.Now())
	}
	holdLease(t, s, "dead", time.Now().Add(-2*time.Minute))
	holdLease(t, s, "dead-ahead", time.Now().Add(time.Hour))
	t.Cleanup(func() {
		for _, node := range []string{"held-on", "dead", "dead-ahead"} {
			if err := leases.Delete(context.Background(), node, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		}
	})
	var once sync.Once
	observer := &recorder{onStage: func(Stage) {
		once.Do(func() {
			if err := leases.Delete(context.Background(), "free-soon", metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		})
	}}
	r := quickly(newRollout(s, observer))
	if err := r.AwaitClaims(t.Context(), []string{"free-soon", "dead", "dead-ahead", "never-claimed"}); err != nil {
		t.Fatal(err)
	}
	if !observer.said("waiting: alice@laptop is rolling it back since") || observer.stages() != "claim claim claim" {
		t.Errorf("it was not said who is waited for, or for too many nodes: %s", observer.stages())
	}
	// What was waited for is neither refused nor waited for once more.
	for _, node := range []string{"dead", "dead-ahead"} {
		if _, live, expired, err := r.claims.By(t.Context(), node); live || !expired || err != nil {
			t.Errorf("claim on %s: live %t, expired %t, %v", node, live, expired, err)
		}
	}
	short := func(o *Options) { o.Drain.Timeout = time.Second }
	err := newRollout(s, &recorder{}, short).AwaitClaims(t.Context(), []string{"held-on"})
	_ = wantError(t, err, OutcomeTimeout, "node held-on: claim: still claimed after 1s: alice@laptop is rolling it back since")
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	err = newRollout(s, &recorder{onStage: func(Stage) { cancel(enough) }}).AwaitClaims(ctx, []string{"held-on"})
	if _ = wantError(t, err, OutcomeInterrupted, "enough"); !errors.Is(err, enough) {
		t.Error(err)
	}
}

// TestOtherRunCameBetween has another run switch the node between preflight and claim: what is known of that run must not be written
// over, since the way back needs it.
func TestOtherRunCameBetween(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "between")
	if _, err := newRollout(s, &recorder{}).Switch(t.Context(), "between"); err != nil {
		t.Fatal(err)
	}
	before := getNode(t, s, "between").Annotations
	_, err := newRollout(s, &recorder{}).Switch(t.Context(), "between")
	_ = wantError(t, err, OutcomeRefused, "already on "+containerdVersion)
	if after := getNode(t, s, "between").Annotations; !maps.Equal(before, after) || len(h.Phases()) != 3 {
		t.Errorf("the node was touched: %v, phases %v", after, h.Phases())
	}
	nothingLeft(t, s, "between")
}
