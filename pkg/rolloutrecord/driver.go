package rolloutrecord

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rollout"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// Driver is the driver's side of a record. It is not for several goroutines.
type Driver struct {
	Name  string
	store Store
	lease *claim.Claim
	// known is the record as this process has read or written it last.
	known *corev1.ConfigMap
	spec  string
}

// Create makes the record of a rollout that begins, and takes the Lease of its driver. The namespace is there. Records of earlier rollouts that are too
// many are removed; that this fails is only noted.
func (s Store) Create(ctx context.Context, spec Spec, holder string, note func(string)) (*Driver, error) {
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: nodejob.Namespace, Labels: Labels()}}
	if err := encode(object, keySpec, spec); err != nil {
		return nil, err
	}
	if len(object.Data[keySpec]) > maxSpecBytes {
		return nil, fmt.Errorf("create the record of the rollout: its nodes and flags have more than %d bytes: use a selector", maxSpecBytes)
	}
	if err := s.prune(ctx); err != nil && !apierrors.IsForbidden(err) {
		note(err.Error())
	}
	claims := &claim.Claims{Client: s.Client, Clock: s.Clock, Holder: holder}
	for {
		object.Name = spec.Operation + "-" + rand.String(5)
		// The Lease first: a record without one is of a driver that is gone.
		lease, _, err := claims.Take(context.WithoutCancel(ctx), leasePrefix+object.Name, "", claim.Operation(spec.Operation), note)
		var held *claim.HeldError
		if errors.As(err, &held) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("take the lease of the rollout: %w", err)
		}
		created, err := s.Client.CoreV1().ConfigMaps(nodejob.Namespace).Create(ctx, object, metav1.CreateOptions{})
		if err == nil {
			return &Driver{Name: object.Name, store: s, lease: lease, known: created, spec: created.Data[keySpec]}, nil
		}
		err = errors.Join(err, lease.Release(context.WithoutCancel(ctx)))
		if !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("create the record of the rollout: %w", err)
		}
	}
}

// ErrGone says that the record is not what this driver has made.
var ErrGone = errors.New("the record of this rollout was deleted or changed by somebody else")

// Control is what people want, as of the last request.
func (d *Driver) Control() Control {
	r, err := read(d.known)
	if err != nil {
		return Control{Aborted: true}
	}
	return r.Control
}

// Refresh reads what people want.
func (d *Driver) Refresh(ctx context.Context) error {
	object, err := d.store.Client.CoreV1().ConfigMaps(nodejob.Namespace).Get(ctx, d.Name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("get rollout %s: %w", d.Name, err)
	}
	if err != nil || d.lease.IsLost() {
		return ErrGone
	}
	if r, err := read(object); err != nil || object.UID != d.known.UID || object.Data[keySpec] != d.spec || r.Status.Outcome != "" {
		return ErrGone
	}
	d.known = object
	return nil
}

// Write writes how far the rollout is, unless that is what the record says. With starts, nodes start with that: it writes only if nobody wants the rollout paused
// or aborted at that moment, and reports whether it has written.
func (d *Driver) Write(ctx context.Context, status Status, starts bool) (written bool, err error) {
	status = bounded(status)
	for range tries {
		if d.lease.IsLost() {
			return false, ErrGone
		}
		if control := d.Control(); starts && (control.Paused || control.Aborted) {
			return false, nil
		}
		object := d.known.DeepCopy()
		if err := encode(object, keyStatus, status); err != nil {
			return false, err
		}
		if object.Data[keyStatus] == d.known.Data[keyStatus] && !starts {
			return true, nil
		}
		object, err = d.store.Client.CoreV1().ConfigMaps(nodejob.Namespace).Update(ctx, object, metav1.UpdateOptions{})
		switch {
		case err == nil:
			d.known = object
			return true, nil
		case apierrors.IsConflict(err), apierrors.IsNotFound(err):
			if err := d.Refresh(ctx); err != nil {
				return false, err
			}
		default:
			return false, fmt.Errorf("update rollout %s: %w", d.Name, err)
		}
	}
	return false, fmt.Errorf("update rollout %s: others change it at the same time", d.Name)
}

// Note is as of rollout.Record.
func (d *Driver) Note(ctx context.Context, members []rollout.Member, wait string, starts, fresh bool) (rollout.Orders, error) {
	var err error
	if fresh {
		err = d.Refresh(ctx)
	}
	if err == nil {
		_, err = d.Write(ctx, StatusOf(members, wait), starts)
	}
	switch {
	case errors.Is(err, ErrGone):
		return rollout.Orders{Stop: err.Error()}, nil
	case err != nil:
		return rollout.Orders{}, err
	}
	control := d.Control()
	switch who := cmp.Or(control.By, "somebody"); {
	case control.Aborted:
		return rollout.Orders{Stop: "aborted by " + who}, nil
	case control.Paused:
		return rollout.Orders{Hold: "paused by " + who}, nil
	}
	return rollout.Orders{}, nil
}

// StatusOf is where the nodes of a rollout are. Wait is why none starts.
func StatusOf(members []rollout.Member, wait string) Status {
	s := Status{Waiting: wait}
	for _, m := range members {
		switch {
		case m.Phase == rollout.Waiting:
			s.Counts.Waiting++
		case m.Phase == rollout.InFlight:
			s.Counts.InFlight++
		case m.Result == rollout.Done:
			s.Counts.Done++
		case m.Result == rollout.Skipped:
			s.Counts.Skipped++
		case m.Result == rollout.Blocked:
			s.Counts.Blocked++
			s.Failures = append(s.Failures, Failure{m.Name, string(m.Result), m.Reason})
		default:
			s.Counts.Failed++
			s.Failures = append(s.Failures, Failure{m.Name, string(m.Result), m.Reason})
		}
	}
	return s
}

// outcome is how the rollout ended.
func (d *Driver) outcome(s Status, interrupted bool) Outcome {
	switch {
	case interrupted && s.Counts.Waiting+s.Counts.Failed > 0:
		return Interrupted
	case s.Counts.Waiting > 0 && d.Control().Aborted:
		return Aborted
	case s.Counts.Waiting+s.Counts.Failed+s.Counts.Blocked > 0:
		return Failed
	}
	return Completed
}

// End writes how the rollout ended, and releases the driver's Lease.
func (d *Driver) End(ctx context.Context, summary rollout.Summary, interrupted bool) error {
	status := StatusOf(summary.Members, "")
	status.Outcome, status.Reason, status.Ended = d.outcome(status, interrupted), summary.Stopped, stamp(d.store.Clock.Now())
	_, err := d.Write(ctx, status, false)
	return errors.Join(err, d.lease.Release(ctx))
}

// bounded cuts a status down to what is read of one.
func bounded(s Status) Status {
	line := func(text string, most int) string { return untrusted.Line(text, most) }
	s.Waiting, s.Reason = line(s.Waiting, maxWord), line(s.Reason, maxWord)
	var failures []Failure
	for _, f := range s.Failures[:min(len(s.Failures), maxFailures)] {
		failures = append(failures, Failure{Node: f.Node, Result: f.Result, Reason: line(f.Reason, maxReason)})
	}
	s.Failures = failures
	return s
}

// Person is the part of a holder's identity that is for people.
func Person(holder string) string {
	who, _, _ := strings.Cut(holder, "/")
	return cmp.Or(untrusted.Line(who, maxWho), "unknown")
}
