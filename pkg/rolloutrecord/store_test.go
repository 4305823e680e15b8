package rolloutrecord

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rollout"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

var server apiserver.Shared

func TestMain(m *testing.M) { os.Exit(server.Main(m)) }

// newStore is the Store of an API server without records.
func newStore(t *testing.T) (Store, *apiserver.Server) {
	t.Helper()
	s := server.Get(t)
	_, err := s.Client().CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: nodejob.Namespace}}, metav1.CreateOptions{})
	if err == nil || apierrors.IsAlreadyExists(err) {
		err = s.Client().CoreV1().ConfigMaps(nodejob.Namespace).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: label})
	}
	if err == nil {
		err = s.Client().CoordinationV1().Leases(nodejob.Namespace).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return Store{Client: s.Client(), Clock: clock.RealClock{}}, s
}

func spec(selection ...string) Spec {
	return Spec{Operation: "switch", Selection: selection, Nodes: 3, MaxUnavailable: "1", MaxFailures: 1, Owner: "alice@laptop", Version: "test"}
}

func create(t *testing.T, s Store, spec Spec) *Driver {
	t.Helper()
	d, err := s.Create(t.Context(), spec, "alice@laptop/1", func(text string) { t.Error(text) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.lease.Release(context.Background()) })
	return d
}

// lose has a driver's Lease be an hour old, and never renewed again.
func lose(t *testing.T, s Store, d *Driver) {
	t.Helper()
	err := d.lease.Release(t.Context())
	if err == nil {
		_, err = s.Client.CoordinationV1().Leases(nodejob.Namespace).Create(t.Context(), &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: leasePrefix + d.Name},
			Spec: coordinationv1.LeaseSpec{
				HolderIdentity: ptr.To("alice@laptop/1"), LeaseDurationSeconds: ptr.To[int32](60), RenewTime: ptr.To(metav1.NewMicroTime(time.Now().Add(-time.Hour))),
			},
		}, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func states(t *testing.T, s Store) string {
	t.Helper()
	entries, unreadable, err := s.List(t.Context())
	if err != nil || len(unreadable) > 0 {
		t.Fatal(err, unreadable)
	}
	var list []string
	for _, e := range entries {
		list = append(list, string(e.State))
	}
	return strings.Join(list, " ")
}

func control(s Store, name string, change Change) error {
	_, err := s.Control(context.Background(), name, "bob@desk", change)
	return err
}

// TestPauseIsStrict: once a pause is written, no node starts, also of a driver that has not read it.
func TestPauseIsStrict(t *testing.T) {
	s, _ := newStore(t)
	d := create(t, s, spec("--all=true"))
	members := []rollout.Member{{Name: "a", Phase: rollout.InFlight}, {Name: "b"}}
	note := func(starts bool, fresh ...bool) rollout.Orders {
		t.Helper()
		orders, err := d.Note(t.Context(), members, "", starts, len(fresh) > 0)
		if err != nil {
			t.Fatal(err)
		}
		return orders
	}
	if got := note(true); got != (rollout.Orders{}) {
		t.Fatalf("orders %+v", got)
	}
	if got := states(t, s); got != "Running" {
		t.Error(got)
	}
	if err := control(s, d.Name, Pause); err != nil {
		t.Fatal(err)
	}
	members[1].Phase = rollout.InFlight
	if got := note(true); got != (rollout.Orders{Hold: "paused by bob@desk"}) {
		t.Errorf("orders %+v", got)
	}
	e, err := s.Get(t.Context(), d.Name)
	if err != nil || e.Status.Counts.InFlight != 1 || e.State != Pausing {
		t.Errorf("%+v, %v", e, err)
	}
	for i, step := range []struct {
		change Change
		want   string
	}{{Pause, "it was already paused, by bob@desk"}, {Resume, ""}, {Resume, "it is not paused"}, {Pause, ""}, {Abort, ""}, {Abort, "it was already aborted, by bob@desk"}} {
		if err := control(s, d.Name, step.change); fmt.Sprint(err) != fmt.Sprint(step.want) && (err != nil || step.want != "") {
			t.Errorf("step %d: %v, want %q", i, err, step.want)
		}
	}
	if err := control(s, d.Name, Resume); !IsRefusal(err) || err.Error() != "it was aborted by bob@desk" {
		t.Errorf("an abort is taken back: %v", err)
	}
	if got := note(true, true); got != (rollout.Orders{Stop: "aborted by bob@desk"}) {
		t.Errorf("orders %+v", got)
	}
	members[0].Phase, members[0].Result, members[1].Phase = rollout.Ended, rollout.Done, rollout.Waiting
	if err := d.End(t.Context(), rollout.Summary{Members: members, Stopped: "aborted by bob@desk"}, false); err != nil {
		t.Fatal(err)
	}
	if got := states(t, s); got != "Aborted" {
		t.Error(got)
	}
	if err := control(s, d.Name, Pause); !IsRefusal(err) || err.Error() != "it was aborted: aborted by bob@desk" {
		t.Errorf("pause after the end: %v", err)
	}
}

// TestDriverLost: a rollout whose driver does not report is shown as that, and as continued once there is another one for the same nodes.
func TestDriverLost(t *testing.T) {
	s, _ := newStore(t)
	first := create(t, s, spec("-l=pool=a"))
	lose(t, s, first)
	if got := states(t, s); got != "DriverLost" {
		t.Error(got)
	}
	if err := control(s, first.Name, Pause); !IsRefusal(err) {
		t.Errorf("pause of a lost driver: %v", err)
	}
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // creation times have whole seconds
	create(t, s, spec("-l=pool=b"))
	second := create(t, s, spec("-l=pool=a"))
	entries, _, err := s.List(t.Context())
	if err != nil || entries[0].State != Continued || entries[0].ContinuedBy != second.Name {
		t.Errorf("%+v, %v", entries, err)
	}
	if e, err := s.Get(t.Context(), first.Name); err != nil || e.State != Continued {
		t.Errorf("%+v, %v", e, err)
	}
	// It may only have slept.
	if err := control(s, first.Name, Abort); err != nil {
		t.Error(err)
	}
	if orders, err := first.Note(t.Context(), nil, "", true, false); err != nil || orders.Stop != "aborted by bob@desk" {
		t.Errorf("%+v, %v", orders, err)
	}
}

// TestRecordIsTheDrivers: whose record is deleted, or has another spec, stops.
func TestRecordIsTheDrivers(t *testing.T) {
	s, _ := newStore(t)
	api := s.Client.CoreV1().ConfigMaps(nodejob.Namespace)
	for name, change := range map[string]func(d *Driver) error{
		"deleted": func(d *Driver) error { return api.Delete(t.Context(), d.Name, metav1.DeleteOptions{}) },
		"another spec": func(d *Driver) error {
			object, err := api.Get(t.Context(), d.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			object.Data[keySpec] = strings.Replace(object.Data[keySpec], `"nodes":3`, `"nodes":300`, 1)
			_, err = api.Update(t.Context(), object, metav1.UpdateOptions{})
			return err
		},
		"ended by somebody": func(d *Driver) error {
			object, err := api.Get(t.Context(), d.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			object.Data[keyStatus] = `{"outcome":"Completed"}`
			_, err = api.Update(t.Context(), object, metav1.UpdateOptions{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := create(t, s, spec("--all=true"))
			if err := change(d); err != nil {
				t.Fatal(err)
			}
			orders, err := d.Note(t.Context(), []rollout.Member{{Name: "a"}}, "", true, false)
			if err != nil || !strings.Contains(orders.Stop, "deleted or changed") {
				t.Errorf("%+v, %v", orders, err)
			}
		})
	}
}

// TestPrune: the records of the last rollouts that have ended are kept, and those that run.
func TestPrune(t *testing.T) {
	s, _ := newStore(t)
	running := create(t, s, spec("running"))
	lost := create(t, s, spec("lost"))
	lose(t, s, lost)
	for i := range kept + 2 {
		d := create(t, s, spec(fmt.Sprint(i)))
		if err := d.End(t.Context(), rollout.Summary{}, false); err != nil {
			t.Fatal(err)
		}
	}
	last := create(t, s, spec("last"))
	entries, _, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	has := func(name string) bool {
		return slices.ContainsFunc(entries, func(e Entry) bool { return e.Name == name })
	}
	if len(entries) != kept+2 || !has(running.Name) || !has(last.Name) {
		t.Errorf("%d records", len(entries))
	}
	leases, err := s.Client.CoordinationV1().Leases(nodejob.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range leases.Items {
		if name := RolloutOf(&leases.Items[i]); !has(name) {
			t.Errorf("lease %s is left", leases.Items[i].Name)
		}
	}
}

// TestListNamesTheUnreadable: one bad ConfigMap does not keep the others from being shown.
func TestListNamesTheUnreadable(t *testing.T) {
	s, server := newStore(t)
	create(t, s, spec("a"))
	bad := object("switch-zzzzz", map[string]string{"spec": "{"})
	if _, err := server.Client().CoreV1().ConfigMaps(nodejob.Namespace).Create(t.Context(), bad, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	entries, unreadable, err := s.List(t.Context())
	if err != nil || len(entries) != 1 || len(unreadable) != 1 || !strings.Contains(unreadable[0], "switch-zzzzz") {
		t.Errorf("%v, %v, %v", entries, unreadable, err)
	}
	if _, err := s.Get(t.Context(), "switch-nnnnn"); !apierrors.IsNotFound(errors.Unwrap(err)) {
		t.Error(err)
	}
}
