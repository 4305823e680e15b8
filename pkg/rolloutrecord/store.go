package rolloutrecord

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
)

// leasePrefix begins the name of a driver's Lease. Those of nodes are named by their node.
const leasePrefix = "rollout."

// RolloutOf is the rollout whose driver has a Lease, "" if the Lease is that of a node.
func RolloutOf(lease *coordinationv1.Lease) string {
	if name, ok := strings.CutPrefix(lease.Name, leasePrefix); ok && namePattern.MatchString(name) {
		return name
	}
	return ""
}

// kept is how many records of rollouts that have ended are kept.
const kept = 20

// Store reads and writes the records of a cluster.
type Store struct {
	Client kubernetes.Interface
	Clock  clock.WithTicker
}

// Entry is a Record with what its rollout does now.
type Entry struct {
	*Record
	State State
	// ContinuedBy is the later rollout of the same nodes, for Continued.
	ContinuedBy string
}

// Get reads one rollout; an error for which apierrors.IsNotFound holds says that there is none.
func (s Store) Get(ctx context.Context, name string) (*Entry, error) {
	object, err := s.Client.CoreV1().ConfigMaps(nodejob.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get rollout %s: %w", name, err)
	}
	e, err := s.entry(ctx, object)
	if err != nil || e.State != DriverLost {
		return e, err
	}
	all, _, err := s.List(ctx)
	if i := slices.IndexFunc(all, func(other Entry) bool { return other.UID == e.UID }); err == nil && i >= 0 {
		return &all[i], nil // it may be continued
	}
	return e, err
}

func (s Store) entry(ctx context.Context, object *corev1.ConfigMap) (*Entry, error) {
	r, err := read(object)
	if err != nil {
		return nil, err
	}
	driven, err := s.isDriven(ctx, r)
	if err != nil {
		return nil, err
	}
	return &Entry{Record: r, State: r.State(driven)}, nil
}

// List reads all rollouts, the oldest first. Unreadable says which records could not be read, a sentence each.
func (s Store) List(ctx context.Context) (entries []Entry, unreadable []string, err error) {
	objects, err := s.objects(ctx)
	if err != nil {
		return nil, nil, err
	}
	for i := range objects {
		r, err := read(&objects[i])
		if err != nil {
			unreadable = append(unreadable, err.Error())
			continue
		}
		driven, err := s.isDriven(ctx, r)
		if err != nil {
			return nil, nil, err
		}
		entries = append(entries, Entry{Record: r, State: r.State(driven)})
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		if order := a.Created.Compare(b.Created); order != 0 {
			return order
		}
		return strings.Compare(a.Name, b.Name)
	})
	for i := range entries {
		later := slices.IndexFunc(entries[i+1:], func(e Entry) bool {
			return e.Spec.Operation == entries[i].Spec.Operation && slices.Equal(e.Spec.Selection, entries[i].Spec.Selection)
		})
		if entries[i].State == DriverLost && later >= 0 {
			entries[i].State, entries[i].ContinuedBy = Continued, entries[i+1+later].Name
		}
	}
	return entries, unreadable, nil
}

// maxRecords bounds how many records are read.
const maxRecords = 500

// objects are the ConfigMaps that are labelled as records.
func (s Store) objects(ctx context.Context) ([]corev1.ConfigMap, error) {
	list, err := s.Client.CoreV1().ConfigMaps(nodejob.Namespace).List(ctx, metav1.ListOptions{LabelSelector: label, Limit: maxRecords})
	if err != nil {
		return nil, fmt.Errorf("list rollouts: %w", err)
	}
	return list.Items, nil
}

// isDriven reports whether a rollout's driver has renewed its Lease in time, as far as the clocks tell.
func (s Store) isDriven(ctx context.Context, r *Record) (bool, error) {
	if r.Status.Outcome != "" {
		return false, nil
	}
	held, err := claim.Read(ctx, s.Client, leasePrefix+r.Name, s.Clock.Now())
	return held != nil, err
}

// tries is how often a change meets others.
const tries = 20

// Control changes what people want of a rollout, in the name of who, and returns the rollout as it was. What change refuses is a refusal, see IsRefusal.
func (s Store) Control(ctx context.Context, name, who string, change Change) (*Entry, error) {
	api := s.Client.CoreV1().ConfigMaps(nodejob.Namespace)
	for range tries {
		object, err := api.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("get rollout %s: %w", name, err)
		}
		e, err := s.entry(ctx, object)
		if err != nil {
			return nil, err
		}
		control, err := change(e)
		if err != nil {
			return e, err
		}
		control.By, control.At = who, stamp(s.Clock.Now())
		if err := encode(object, keyControl, control); err != nil {
			return nil, err
		}
		if _, err = api.Update(ctx, object, metav1.UpdateOptions{}); err == nil { // only as it was read
			return e, nil
		}
		if !apierrors.IsConflict(err) {
			return nil, fmt.Errorf("update rollout %s: %w", name, err)
		}
	}
	return nil, fmt.Errorf("update rollout %s: others change it at the same time", name)
}

func encode(object *corev1.ConfigMap, key string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s of rollout %s: %w", key, object.Name, err)
	}
	if object.Data == nil {
		object.Data = map[string]string{}
	}
	object.Data[key] = string(text)
	return nil
}

// prune removes the oldest records of rollouts that have ended, or whose driver is lost, beyond those that are kept.
func (s Store) prune(ctx context.Context) error {
	entries, _, err := s.List(ctx)
	if err != nil {
		return err
	}
	entries = slices.DeleteFunc(entries, func(e Entry) bool { return !e.State.Ended() })
	for _, e := range entries[:max(0, len(entries)-kept)] {
		uid := e.UID
		err := s.Client.CoordinationV1().Leases(nodejob.Namespace).Delete(ctx, leasePrefix+e.Name, metav1.DeleteOptions{})
		if err == nil || apierrors.IsNotFound(err) {
			err = s.Client.CoreV1().ConfigMaps(nodejob.Namespace).Delete(ctx, e.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("remove the record of rollout %s: %w", e.Name, err)
		}
	}
	return nil
}

// Labels are those of a record.
func Labels() labels.Set {
	set := labels.Set(nodejob.Labels())
	set[label] = "true"
	return set
}

// stamp is a time in whole seconds.
func stamp(now time.Time) *time.Time {
	now = now.UTC().Truncate(time.Second)
	return &now
}
