// Package claim is the Lease by which one run has a node, in this program's namespace. It knows who has a node, takes a claim over only from a run
// that is gone, and says whether a claim still holds before anything is written. What is done under a claim is its callers' business.
package claim

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
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// ExpiryProof and what it follows from: a claim holds for duration after its last renewal. Its time is on its holder's clock, so that another run takes it over only after it has also
// seen it without a renewal for ExpiryProof, on its own clock. So within ExpiryProof of a renewal nobody can have taken it, and what is written within
// renewInterval has as long again to arrive: no renewal is needed for it. One that is older is renewed before anything is written (Keep), and in any
// case every renewInterval, which leaves room for a second try. What cannot be taken back needs a renewal of now (Prove).
const (
	duration      = time.Minute
	renewInterval = 15 * time.Second
	ExpiryProof   = 2 * renewInterval
)

// pollInterval is how often a Lease is looked at that seems to have ended.
const pollInterval = 500 * time.Millisecond

// The annotations of a Lease: the run that the claim is for, and its Operation.
const (
	AnnotationRun       = nodestate.Prefix + "run"
	AnnotationOperation = nodestate.Prefix + "operation"
)

// Operation is what a claim is for.
type Operation string

// The operations.
const (
	Switch   Operation = "switch"
	Rollback Operation = "rollback"
)

// HeldError says that another run has the node.
type HeldError struct {
	Holder string
	Since  time.Time
	// Operation is what the holder does; empty if it did not say.
	Operation Operation
	// Until is when the claim ends unless it is renewed.
	Until time.Time
}

func (e *HeldError) Error() string {
	does := "is at work on it"
	switch e.Operation {
	case Switch:
		does = "is switching it"
	case Rollback:
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

// ErrLost is the cause of a context whose claim somebody else took over.
var ErrLost = errors.New("another run took over the claim on the node")

// Claims are the claims of one process.
type Claims struct {
	Client kubernetes.Interface
	Clock  clock.WithTicker
	// Holder is unique among processes, and tells people whose a claim is: "alice@laptop/…".
	Holder string

	mu   sync.Mutex
	seen map[string]sighting
}

// Claim is a held Lease.
type Claim struct {
	claims *Claims
	name   string
	epoch  string
	// Dead is whose claim was taken over because nobody renewed it, or nil.
	Dead *HeldError
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

// Take takes the node's Lease, and renews it until the claim is released. The returned context ends with ErrLost when
// somebody else has taken it over. A live claim of somebody else is a *HeldError. Note gets what is waited for, a sentence.
func (r *Claims) Take(ctx context.Context, node, run string, operation Operation, note func(string)) (*Claim, context.Context, error) {
	lease, dead, err := r.acquire(ctx, node, run, operation, note)
	if err != nil {
		return nil, nil, err
	}
	ctx, lost := context.WithCancelCause(ctx)
	renewCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	c := &Claim{
		claims: r, name: node, epoch: fmt.Sprintf("%s-%d", lease.UID, ptr.Deref(lease.Spec.LeaseTransitions, 0)), Dead: dead, lost: lost, stop: stop, stopped: make(chan struct{}), last: lease, at: lease.Spec.RenewTime.Time,
	}
	go c.renew(renewCtx)
	return c, ctx, nil
}

// acquire creates the Lease, or takes one that is ours or that nobody renews any more. A conflict means that another run did
// so at the same moment. Dead is the claim that was taken over, or nil.
func (r *Claims) acquire(ctx context.Context, node, run string, operation Operation, note func(string)) (lease *coordinationv1.Lease, dead *HeldError, err error) {
	leases := r.Client.CoordinationV1().Leases(nodejob.Namespace)
	watched := ""
	for conflicts := 0; conflicts < 3; conflicts++ {
		now := metav1.NewMicroTime(r.Clock.Now())
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: nodejob.Namespace, Name: node, Labels: nodejob.NodeLabels(node)}}
		r.fill(lease, run, operation, now)
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
		other := Foreign(lease, r.Holder)
		if other != nil && !r.hasExpired(lease, other) {
			renewed := watched != "" && watched != lease.ResourceVersion
			if renewed || r.looksLive(lease, other) {
				return nil, nil, other
			}
			if watched == "" {
				note(fmt.Sprintf("%s, but that claim seems to have ended: making sure for %s that nobody renews it", other, ExpiryProof))
			}
			watched = lease.ResourceVersion
			if err := r.pause(ctx); err != nil {
				return nil, nil, err
			}
			conflicts = 0
			continue
		}
		r.fill(lease, run, operation, now)
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

// sighting is since when a Lease has been seen as it is.
type sighting struct {
	version string
	since   time.Time
}

// unchanged is for how long this process has seen a Lease without a change. Holder and reader of a Lease have different clocks, so that
// only this tells a claim that is not renewed (as k8s.io/client-go v0.37.2 tools/leaderelection does it).
func (r *Claims) unchanged(lease *coordinationv1.Lease) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = map[string]sighting{}
	}
	now := r.Clock.Now()
	seen, ok := r.seen[lease.Name]
	if version := string(lease.UID) + "/" + lease.ResourceVersion; !ok || seen.version != version {
		seen = sighting{version: version, since: now}
		r.seen[lease.Name] = seen
	}
	return now.Sub(seen.since)
}

// looksLive reports whether a claim of somebody else holds as far as the clocks tell, which is enough to leave a node alone.
func (r *Claims) looksLive(lease *coordinationv1.Lease, other *HeldError) bool {
	return r.unchanged(lease) < duration && r.Clock.Now().Before(other.Until)
}

// hasExpired reports whether a claim of somebody else was seen to be renewed no more, which it takes to take it over.
func (r *Claims) hasExpired(lease *coordinationv1.Lease, other *HeldError) bool {
	return !r.looksLive(lease, other) && r.unchanged(lease) >= ExpiryProof
}

func (r *Claims) fill(lease *coordinationv1.Lease, run string, operation Operation, now metav1.MicroTime) {
	metav1.SetMetaDataAnnotation(&lease.ObjectMeta, AnnotationRun, run)
	metav1.SetMetaDataAnnotation(&lease.ObjectMeta, AnnotationOperation, string(operation))
	if ptr.Deref(lease.Spec.HolderIdentity, "") != r.Holder {
		lease.Spec.AcquireTime = &now
		if lease.ResourceVersion != "" {
			lease.Spec.LeaseTransitions = ptr.To(ptr.Deref(lease.Spec.LeaseTransitions, 0) + 1)
		}
	}
	lease.Spec.HolderIdentity = &r.Holder
	lease.Spec.LeaseDurationSeconds = ptr.To(int32(duration / time.Second))
	lease.Spec.RenewTime = &now
}

// Foreign is the claim of somebody other than holder, or nil.
func Foreign(lease *coordinationv1.Lease, holder string) *HeldError {
	other := ptr.Deref(lease.Spec.HolderIdentity, "")
	if other == "" || other == holder || lease.Spec.RenewTime == nil {
		return nil
	}
	until := lease.Spec.RenewTime.Add(time.Duration(ptr.Deref(lease.Spec.LeaseDurationSeconds, 0)) * time.Second)
	since := lease.Spec.RenewTime.Time
	if lease.Spec.AcquireTime != nil {
		since = lease.Spec.AcquireTime.Time
	}
	return &HeldError{Holder: other, Since: since, Until: until, Operation: Operation(lease.Annotations[AnnotationOperation])}
}

// renew keeps the claim. Requests that fail are tried again: during a cutover the API server itself may be away.
func (c *Claim) renew(ctx context.Context) {
	defer close(c.stopped)
	ticker := c.claims.Clock.NewTicker(renewInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		if err := c.refresh(ctx, renewInterval/2); errors.Is(err, ErrLost) {
			return
		}
	}
}

// Epoch is unique among all claims on all nodes: a Lease that is made again has another UID, and one that is taken over counts that.
func (c *Claim) Epoch() string { return c.epoch }

// IsLost reports whether somebody else has the node.
func (c *Claim) IsLost() bool { return c.gone.Load() }

// Keep makes sure that nobody can have taken the claim over, or says ErrLost. Each write that another run could suffer from comes right after
// it: a process that slept for longer than its claim wakes in the middle of something, and others may have changed the node since.
func (c *Claim) Keep(ctx context.Context) error { return c.refresh(ctx, renewInterval) }

// Prove is Keep with a renewal of now: the API server itself says that the claim is this process's.
func (c *Claim) Prove(ctx context.Context) error { return c.refresh(ctx, 0) }

// refresh renews the claim if its last renewal is older than age.
func (c *Claim) refresh(ctx context.Context, age time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone.Load() {
		return ErrLost
	}
	now := c.claims.Clock.Now()
	// The monotonic clock stops while a machine sleeps, and the other one can be set.
	mono, wall := now.Sub(c.at), now.Round(0).Sub(c.at.Round(0))
	if min(mono, wall) >= 0 && max(mono, wall) < age {
		return nil
	}
	leases := c.claims.Client.CoordinationV1().Leases(nodejob.Namespace)
	isOurs := true
	lease, err := leases.Update(ctx, c.renewed(c.last, now), metav1.UpdateOptions{})
	if apierrors.IsConflict(err) { // somebody has changed it: an administrator, or another run
		lease, err = leases.Get(ctx, c.name, metav1.GetOptions{})
		if isOurs = err == nil && ptr.Deref(lease.Spec.HolderIdentity, "") == c.claims.Holder; isOurs {
			lease, err = leases.Update(ctx, c.renewed(lease, now), metav1.UpdateOptions{})
		}
	}
	switch {
	case apierrors.IsNotFound(err), err == nil && !isOurs:
		c.gone.Store(true)
		c.lost(ErrLost)
		return ErrLost
	case err != nil:
		return fmt.Errorf("renew lease %s: %w", c.name, err)
	}
	c.last, c.at = lease, now
	return nil
}

// renewed is a Lease with a renewal of now.
func (c *Claim) renewed(lease *coordinationv1.Lease, now time.Time) *coordinationv1.Lease {
	lease = lease.DeepCopy()
	lease.Spec.RenewTime = ptr.To(metav1.NewMicroTime(now))
	return lease
}

// Release gives the claim up. It is not an error if somebody else has it.
func (c *Claim) Release(ctx context.Context) error {
	c.stop()
	<-c.stopped
	c.mu.Lock()
	defer c.mu.Unlock()
	leases := c.claims.Client.CoordinationV1().Leases(nodejob.Namespace)
	for lease := c.last; ; {
		err := leases.Delete(ctx, c.name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &lease.UID, ResourceVersion: &lease.ResourceVersion}})
		if apierrors.IsConflict(err) { // it is not as it was renewed last
			lease, err = leases.Get(ctx, c.name, metav1.GetOptions{})
			if err == nil && ptr.Deref(lease.Spec.HolderIdentity, "") == c.claims.Holder && ctx.Err() == nil {
				continue
			}
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("release lease %s: %w", c.name, err)
		}
		return nil
	}
}

// By returns the claim of another run on a node, or nil, and whether it was seen to be renewed no more.
func (r *Claims) By(ctx context.Context, node string) (other *HeldError, live, expired bool, err error) {
	lease, err := ReadLease(ctx, r.Client, node)
	if err != nil || lease == nil {
		return nil, false, false, err
	}
	if other = Foreign(lease, r.Holder); other != nil {
		live, expired = r.looksLive(lease, other), r.hasExpired(lease, other)
	}
	return other, live, expired, nil
}

// Read returns the claim that holds a node now, or nil.
func Read(ctx context.Context, client kubernetes.Interface, node string, now time.Time) (*HeldError, error) {
	lease, err := ReadLease(ctx, client, node)
	if err != nil || lease == nil {
		return nil, err
	}
	if other := Foreign(lease, ""); other != nil && now.Before(other.Until) {
		return other, nil
	}
	return nil, nil
}

// ReadLease returns a node's Lease, or nil.
func ReadLease(ctx context.Context, client kubernetes.Interface, node string) (*coordinationv1.Lease, error) {
	lease, err := client.CoordinationV1().Leases(nodejob.Namespace).Get(ctx, node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get lease %s: %w", node, err)
	}
	return lease, nil
}

func (r *Claims) pause(ctx context.Context) error {
	timer := r.Clock.NewTimer(pollInterval)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C():
		return nil
	}
}
