package rollout

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// A claim holds for claimDuration after its last renewal. Its time is on its holder's clock, so that another run takes it over only after it has also
// seen it without a renewal for expiryProof, on its own clock. So within expiryProof of a renewal nobody can have taken it, and what is written within
// renewInterval has as long again to arrive: no renewal is needed for it. One that is older is renewed before anything is written (Keep), and in any
// case every renewInterval, which leaves room for a second try. What cannot be taken back needs a renewal of now (Prove).
const (
	claimDuration = time.Minute
	renewInterval = 15 * time.Second
	expiryProof   = 2 * renewInterval
)

// annotationRun on the Lease names the run that the claim is for.
const annotationRun = nodestate.AnnotationRun

// annotationOperation on the Lease says what the claim is for: operationSwitch or operationRollback.
const (
	annotationOperation = nodestate.Prefix + "operation"
	operationSwitch     = "switch"
	operationRollback   = "rollback"
)

// ClaimedError says that another run has the node.
type ClaimedError struct {
	Holder string
	Since  time.Time
	// Operation is what the holder does, as annotationOperation has it; empty if it did not say.
	Operation string
	// Until is when the claim ends unless it is renewed.
	Until time.Time
}

func (e *ClaimedError) Error() string {
	does := "is at work on it"
	switch e.Operation {
	case operationSwitch:
		does = "is switching it"
	case operationRollback:
		does = "is rolling it back"
	}
	return fmt.Sprintf("%s %s since %s", person(e.Holder), does, e.Since.Local().Format("2006-01-02 15:04:05"))
}

// maxHolder bounds what is shown of a holder, in bytes.
const maxHolder = 128

// person is the part of a holder's identity that is for people.
func person(holder string) string {
	who, _, _ := strings.Cut(holder, "/")
	return untrusted.Line(who, maxHolder)
}

// errClaimLost is the cause of a context whose claim somebody else took over.
var errClaimLost = errors.New("another run took over the claim on the node")

// claim is a held Lease.
type claim struct {
	rollout *Rollout
	name    string
	// dead is whose claim was taken over because nobody renewed it, or nil.
	dead *ClaimedError
	// lost ends the context that the claim's work has.
	lost context.CancelCauseFunc
	gone atomic.Bool // somebody else has the node
	// mu holds during a renewal. last is the Lease as this process has renewed it last, at when it asked for that.
	mu      sync.Mutex
	last    *coordinationv1.Lease
	at      time.Time
	stop    context.CancelFunc
	stopped chan struct{}
}

// takeClaim takes the node's Lease, and renews it until the claim is released. The returned context ends with errClaimLost when
// somebody else has taken it over. A live claim of somebody else is a *ClaimedError.
func (r *Rollout) takeClaim(ctx context.Context, node, run, operation string) (*claim, context.Context, error) {
	lease, dead, err := r.acquire(ctx, node, run, operation)
	if err != nil {
		return nil, nil, err
	}
	ctx, lost := context.WithCancelCause(ctx)
	renewCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	c := &claim{
		rollout: r, name: node, dead: dead, lost: lost, stop: stop, stopped: make(chan struct{}), last: lease, at: lease.Spec.RenewTime.Time,
	}
	go c.renew(renewCtx)
	return c, ctx, nil
}

// acquire creates the Lease, or takes one that is ours or that nobody renews any more. A conflict means that another run did
// so at the same moment. Dead is the claim that was taken over, or nil.
func (r *Rollout) acquire(ctx context.Context, node, run, operation string) (lease *coordinationv1.Lease, dead *ClaimedError, err error) {
	leases := r.client.CoordinationV1().Leases(nodejob.Namespace)
	watched := ""
	for conflicts := 0; conflicts < 3; conflicts++ {
		now := metav1.NewMicroTime(r.clock.Now())
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: nodejob.Namespace, Name: node, Labels: nodejob.NodeLabels(node)}}
		r.fillLease(lease, run, operation, now)
		created, err := leases.Create(ctx, lease, metav1.CreateOptions{})
		if err == nil {
			return created, nil, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, nil, fmt.Errorf("create lease %s: %w", node, err)
		}
		lease, err = leases.Get(ctx, node, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("get lease %s: %w", node, err)
		}
		other := foreignClaim(lease, r.holder)
		if other != nil && !r.hasExpired(lease, other) {
			renewed := watched != "" && watched != lease.ResourceVersion
			if renewed || r.looksLive(lease, other) {
				return nil, nil, other
			}
			if watched == "" {
				r.tellClaim(node, Info, fmt.Sprintf("%s, but that claim seems to have ended: making sure for %s that nobody renews it", other, expiryProof))
			}
			watched = lease.ResourceVersion
			if err := r.sleep(ctx); err != nil {
				return nil, nil, err
			}
			conflicts = 0
			continue
		}
		r.fillLease(lease, run, operation, now)
		updated, err := leases.Update(ctx, lease, metav1.UpdateOptions{}) // only as it was read
		if err == nil {
			return updated, other, nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return nil, nil, fmt.Errorf("update lease %s: %w", node, err)
		}
	}
	return nil, nil, fmt.Errorf("take lease %s: other runs do so at the same time", node)
}

// sightings are since when each Lease has been seen as it is.
type sightings struct {
	mu    sync.Mutex
	seen  map[string]sighting
	clock clock.PassiveClock
}

type sighting struct {
	version string
	since   time.Time
}

// unchanged is for how long this process has seen a Lease without a change. Holder and reader of a Lease have different clocks, so that
// only this tells a claim that is not renewed (as k8s.io/client-go v0.37.2 tools/leaderelection does it).
func (s *sightings) unchanged(lease *coordinationv1.Lease) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	seen, ok := s.seen[lease.Name]
	if version := string(lease.UID) + "/" + lease.ResourceVersion; !ok || seen.version != version {
		seen = sighting{version: version, since: now}
		s.seen[lease.Name] = seen
	}
	return now.Sub(seen.since)
}

// looksLive reports whether a claim of somebody else holds as far as the clocks tell, which is enough to leave a node alone.
func (r *Rollout) looksLive(lease *coordinationv1.Lease, other *ClaimedError) bool {
	return r.leases.unchanged(lease) < claimDuration && r.clock.Now().Before(other.Until)
}

// hasExpired reports whether a claim of somebody else was seen to be renewed no more, which it takes to take it over.
func (r *Rollout) hasExpired(lease *coordinationv1.Lease, other *ClaimedError) bool {
	return !r.looksLive(lease, other) && r.leases.unchanged(lease) >= expiryProof
}

func (r *Rollout) fillLease(lease *coordinationv1.Lease, run, operation string, now metav1.MicroTime) {
	metav1.SetMetaDataAnnotation(&lease.ObjectMeta, annotationRun, run)
	metav1.SetMetaDataAnnotation(&lease.ObjectMeta, annotationOperation, operation)
	if ptr.Deref(lease.Spec.HolderIdentity, "") != r.holder {
		lease.Spec.AcquireTime = &now
		if lease.ResourceVersion != "" {
			lease.Spec.LeaseTransitions = ptr.To(ptr.Deref(lease.Spec.LeaseTransitions, 0) + 1)
		}
	}
	lease.Spec.HolderIdentity = &r.holder
	lease.Spec.LeaseDurationSeconds = ptr.To(int32(claimDuration / time.Second))
	lease.Spec.RenewTime = &now
}

// foreignClaim is the claim of somebody other than holder, or nil.
func foreignClaim(lease *coordinationv1.Lease, holder string) *ClaimedError {
	other := ptr.Deref(lease.Spec.HolderIdentity, "")
	if other == "" || other == holder || lease.Spec.RenewTime == nil {
		return nil
	}
	until := lease.Spec.RenewTime.Add(time.Duration(ptr.Deref(lease.Spec.LeaseDurationSeconds, 0)) * time.Second)
	since := lease.Spec.RenewTime.Time
	if lease.Spec.AcquireTime != nil {
		since = lease.Spec.AcquireTime.Time
	}
	return &ClaimedError{Holder: other, Since: since, Until: until, Operation: lease.Annotations[annotationOperation]}
}

// renew keeps the claim. Requests that fail are tried again: during a cutover the API server itself may be away.
func (c *claim) renew(ctx context.Context) {
	defer close(c.stopped)
	ticker := c.rollout.clock.NewTicker(renewInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		if err := c.refresh(ctx, renewInterval/2); errors.Is(err, errClaimLost) {
			return
		}
	}
}

// Keep makes sure that nobody can have taken the claim over, or says errClaimLost. Each write that another run could suffer from comes right after
// it: a process that slept for longer than its claim wakes in the middle of something, and others have gone on with the node.
func (c *claim) Keep(ctx context.Context) error { return c.refresh(ctx, renewInterval) }

// Prove is Keep with a renewal of now: the API server itself says that the claim is this process's.
func (c *claim) Prove(ctx context.Context) error { return c.refresh(ctx, 0) }

// refresh renews the claim if its last renewal is older than age.
func (c *claim) refresh(ctx context.Context, age time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone.Load() {
		return errClaimLost
	}
	now := c.rollout.clock.Now()
	// The monotonic clock stops while a machine sleeps, and the other one can be set.
	mono, wall := now.Sub(c.at), now.Round(0).Sub(c.at.Round(0))
	if min(mono, wall) >= 0 && max(mono, wall) < age {
		return nil
	}
	leases := c.rollout.client.CoordinationV1().Leases(nodejob.Namespace)
	isOurs := true
	lease, err := leases.Update(ctx, c.renewed(c.last, now), metav1.UpdateOptions{})
	if apierrors.IsConflict(err) { // somebody has changed it: an administrator, or another run
		lease, err = leases.Get(ctx, c.name, metav1.GetOptions{})
		if isOurs = err == nil && ptr.Deref(lease.Spec.HolderIdentity, "") == c.rollout.holder; isOurs {
			lease, err = leases.Update(ctx, c.renewed(lease, now), metav1.UpdateOptions{})
		}
	}
	switch {
	case apierrors.IsNotFound(err), err == nil && !isOurs:
		c.gone.Store(true)
		c.lost(errClaimLost)
		return errClaimLost
	case err != nil:
		return fmt.Errorf("renew lease %s: %w", c.name, err)
	}
	c.last, c.at = lease, now
	return nil
}

// renewed is a Lease with a renewal of now.
func (c *claim) renewed(lease *coordinationv1.Lease, now time.Time) *coordinationv1.Lease {
	lease = lease.DeepCopy()
	lease.Spec.RenewTime = ptr.To(metav1.NewMicroTime(now))
	return lease
}

// release gives the claim up. It is not an error if somebody else has it.
func (c *claim) release(ctx context.Context) error {
	c.stop()
	<-c.stopped
	c.mu.Lock()
	defer c.mu.Unlock()
	leases := c.rollout.client.CoordinationV1().Leases(nodejob.Namespace)
	for lease := c.last; ; {
		err := leases.Delete(ctx, c.name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &lease.UID, ResourceVersion: &lease.ResourceVersion}})
		if apierrors.IsConflict(err) { // it is not as it was renewed last
			lease, err = leases.Get(ctx, c.name, metav1.GetOptions{})
			if err == nil && ptr.Deref(lease.Spec.HolderIdentity, "") == c.rollout.holder && ctx.Err() == nil {
				continue
			}
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("release lease %s: %w", c.name, err)
		}
		return nil
	}
}

// runTime is how a run's ID begins.
const runTime = "20060102-150405"

// newRun is a run's ID: its time of birth, for people, and a suffix.
func newRun(now time.Time) string {
	return now.UTC().Format(runTime) + "-" + rand.String(5)
}

// RunBegun is when a run was begun, as its ID tells.
func RunBegun(run string) (begun time.Time, ok bool) {
	if len(run) < len(runTime) {
		return time.Time{}, false
	}
	begun, err := time.Parse(runTime, run[:len(runTime)])
	return begun, err == nil
}
