package nodeswitch

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/jobnamespace"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// keepOpen lets privileged pods into the namespace until the test ends.
func keepOpen(t *testing.T, s *apiserver.Server) {
	t.Helper()
	r := newRollout(s, &recorder{})
	namespace, err := r.namespaces().Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key := jobnamespace.Key("test " + t.Name())
	if _, _, err := r.namespaces().Open(t.Context(), namespace, key, time.Now().Add(time.Hour).UTC().Format(time.RFC3339)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.namespaces().Close(context.Background(), key, nil); err != nil {
			t.Error(err)
		}
	})
}

func ownNamespace(t *testing.T, s *apiserver.Server) *corev1.Namespace {
	t.Helper()
	namespace, err := s.Client().CoreV1().Namespaces().Get(context.Background(), nodejob.Namespace, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return namespace
}

func isOpenFor(t *testing.T, s *apiserver.Server, node string) bool {
	t.Helper()
	_, open := ownNamespace(t, s).Annotations[jobnamespace.Key(node)]
	return open
}

// letsIn reports whether a privileged pod may be created.
func letsIn(t *testing.T, s *apiserver.Server) bool {
	t.Helper()
	if apiserver.Before(s.Version, "1.23") { // nothing there goes by the label
		level := ownNamespace(t, s).Labels[jobnamespace.PodSecurityLabels[0]]
		return level == "" || level == jobnamespace.Privileged
	}
	_, err := s.Client().CoreV1().Pods(nodejob.Namespace).Create(context.Background(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "privileged"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "c", Image: "a", SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)},
		}}, AutomountServiceAccountToken: ptr.To(false)},
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil && !strings.Contains(err.Error(), "violates PodSecurity") {
		t.Fatal(err)
	}
	return err == nil
}

// TestNamespaceIsOpenForRuns: privileged pods are let in while a run is open, and at no other time.
func TestNamespaceIsOpenForRuns(t *testing.T) {
	t.Parallel()
	s := apiserver.Own(t, apiserver.Version())
	ctx := t.Context()
	r := newRollout(s, &recorder{})
	wantOpen := func(what string, want bool) {
		t.Helper()
		if !waitFor(func() bool { return letsIn(t, s) == want }) { // the admission plugin learns of labels from a cache
			t.Errorf("%s: lets privileged pods in: %t", what, !want)
		}
	}
	open := func(key, value string, wantAdded bool) {
		t.Helper()
		if _, added, err := r.namespaces().Open(ctx, ownNamespace(t, s), key, value); err != nil || added != wantAdded {
			t.Errorf("open %s: %t, %v", key, added, err)
		}
	}
	shut := func(key string) {
		t.Helper()
		if err := r.namespaces().Close(ctx, key, nil); err != nil {
			t.Error(err)
		}
	}
	a, b := jobnamespace.Key("a"), jobnamespace.Key("b")
	for _, name := range []string{"a", "b"} {
		s.CreateNodes(t, apiserver.Node(name, dockerVersion, "v1.23.17", func(node *corev1.Node) {
			node.Annotations[nodestate.AnnotationPhase], node.Annotations[nodestate.AnnotationRun] = string(nodestate.StatePreparing), "r1"
		}))
	}
	if _, err := r.namespaces().Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	if !waitFor(func() bool { return !letsIn(t, s) }) { // its ServiceAccount comes later
		t.Error("a new namespace is open")
	}
	open(a, "a", true)
	open(a, "a", false) // the run is resumed
	wantOpen("one run", true)
	open(b, "b", true)
	shut(a)
	wantOpen("the other run", true)
	shut(a)
	wantOpen("the other run, still", true)
	shut(b)
	wantOpen("no run", false)
	open(jobnamespace.Key("gone"), "gone", true)
	open(a, "a", true)
	shut(a)
	wantOpen("the run of a node that is gone", false)

	namespaces := s.Client().CoreV1().Namespaces()
	relabel := func(labels map[string]string) {
		t.Helper()
		namespace := ownNamespace(t, s)
		namespace.Labels = labels
		if _, err := namespaces.Update(ctx, namespace, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	const enforce = "pod-security.kubernetes.io/enforce"
	withLabels := func(more map[string]string) map[string]string {
		labels := nodejob.Labels()
		maps.Copy(labels, more)
		return labels
	}
	legacy := withLabels(nil)
	for _, label := range jobnamespace.PodSecurityLabels {
		legacy[label] = jobnamespace.Privileged
	}
	foreign := map[string]string{"mine": "too"}
	maps.Copy(foreign, legacy)
	delete(foreign, nodejob.LabelManagedBy)
	closed := withLabels(nil)
	for _, label := range jobnamespace.PodSecurityLabels {
		closed[label] = jobnamespace.Restricted
	}
	for _, test := range []struct {
		what          string
		before, after map[string]string
		adds          bool
	}{
		{"an administrator's level", withLabels(map[string]string{enforce: "baseline", "mine": "too"}), withLabels(map[string]string{enforce: "baseline", "mine": "too"}), true},
		{"no level", withLabels(nil), withLabels(nil), true},
		{"the level that an earlier version left", legacy, closed, true},
		{"an administrator's namespace that is always open", foreign, foreign, false},
	} {
		relabel(test.before)
		open(a, "a", test.adds)
		wantOpen(test.what, true)
		shut(a)
		namespace := ownNamespace(t, s)
		delete(namespace.Labels, corev1.LabelMetadataName)
		if !maps.Equal(namespace.Labels, test.after) || len(namespace.Annotations) > 0 {
			t.Errorf("%s: labels %v, annotations %v", test.what, namespace.Labels, namespace.Annotations)
		}
	}

	relabel(closed)
	open(b, r.clock.Now().Add(-time.Minute).UTC().Format(time.RFC3339), true) // a look that was killed
	open(a, "a", true)
	shut(a)
	wantOpen("a look that was killed", false)
	open(b, r.clock.Now().Add(time.Minute).UTC().Format(time.RFC3339), true)
	open(a, "a", true)
	shut(a)
	wantOpen("a look", true)
	shut(b)
	wantOpen("after a look", false)

	before := ownNamespace(t, s)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			key := jobnamespace.Key(fmt.Sprint("racer ", i))
			for range 10 {
				opened, _, err := r.namespaces().Open(ctx, before, key, "a") // as it was before all of them
				if err != nil {
					t.Error(err)
				}
				if labels := ownNamespace(t, s).Labels; labels[enforce] != jobnamespace.Privileged {
					t.Errorf("closed while a run is open: %v", labels)
				}
				if err := r.namespaces().Close(ctx, key, opened); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if namespace := ownNamespace(t, s); namespace.Labels[enforce] != jobnamespace.Restricted || len(namespace.Annotations) > 0 {
		t.Errorf("after all runs: labels %v, annotations %v", namespace.Labels, namespace.Annotations)
	}

	for _, name := range []string{"a", "b"} {
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:null,%q:null}}}`, nodestate.AnnotationPhase, nodestate.AnnotationRun)
		if _, err := s.Client().CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}

	// Whole runs: one that is undone, one that leaves its node to a person, and the way back of that.
	h := hollow.New(t, s, "ends")
	h.Script[protocol.PhasePrepare] = func(h *hollow.Node, spec protocol.Spec) {
		if !isOpenFor(t, s, "ends") {
			t.Error("closed while the node is prepared")
		}
		h.Result(spec, protocol.Result{Outcome: protocol.OutcomeRefused, Message: "no"})
	}
	if _, err := r.Switch(ctx, "ends"); err == nil {
		t.Error("no error")
	}
	wantOpen("a refused run", false)
	delete(h.Script, protocol.PhasePrepare)
	h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
		h.Result(spec, protocol.Result{Outcome: protocol.OutcomeBroken, Message: "stuck"})
	}
	if _, err := r.Switch(ctx, "ends"); err == nil {
		t.Error("no error")
	}
	wantOpen("a run that a person has to end", true)
	found, err := finder(t, r).Find(ctx)
	if err != nil || len(found.Open) == 0 {
		t.Errorf("uninstall would remove an open run: %+v, %v", found, err)
	}
	if _, err := r.Rollback(ctx, "ends"); err != nil {
		t.Error(err)
	}
	wantOpen("a rollback", false)
	delete(h.Script, protocol.PhaseCutover)
	if _, err := r.Switch(ctx, "ends"); err != nil {
		t.Error(err)
	}
	wantOpen("a switch", false)
	if _, err := r.LookAtHost(ctx, "ends"); err != nil {
		t.Error(err)
	}
	wantOpen("a look at a host", false)

	uninstalls(t, s, r)
}

func waitFor(condition func() bool) bool {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if condition() {
			return true
		}
	}
	return false
}
