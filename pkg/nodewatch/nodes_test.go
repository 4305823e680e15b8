package nodewatch

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// TestNodes follows nodes that change, vanish and come, by one list and one watch.
func TestNodes(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("all-1", "docker://20.10.24", "v1.23.17"), apiserver.Node("all-2", "docker://20.10.24", "v1.23.17"))
	tr := &traffic{}
	nodes := NewNodes(tr.client(t, s), clock.RealClock{}, []corev1.Node{*apiserver.Node("listed", "docker://20.10.24", "v1.23.17")})
	if nodes.Node("listed") == nil || nodes.Node("all-1") != nil {
		t.Error("it does not know what was listed before it starts, and nothing else")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	nodes.Start(ctx)
	await := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.After(30 * time.Second); ; {
			changed := nodes.Changed()
			if is() {
				return
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("not seen: %s", what)
			}
		}
	}
	await("the list", func() bool { return nodes.Node("all-1") != nil && nodes.Node("listed") == nil })
	patch := func(patch string) {
		t.Helper()
		if _, err := s.Client().CoreV1().Nodes().Patch(t.Context(), "all-1", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	patch(`{"spec":{"unschedulable":true}}`)
	await("the cordon", func() bool { return nodes.Node("all-1").Spec.Unschedulable })
	if nodes.Node("all-1").ManagedFields != nil {
		t.Error("managed fields are kept")
	}
	s.CreateNodes(t, apiserver.Node("all-3", "docker://20.10.24", "v1.23.17"))
	await("a node that came", func() bool { return nodes.Node("all-3") != nil })
	if err := s.Client().CoreV1().Nodes().Delete(t.Context(), "all-2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await("a node that went", func() bool { return nodes.Node("all-2") == nil })
	tr.mu.Lock()
	requests := len(tr.requests)
	for _, body := range tr.bodies { // the connection is cut
		_ = body.Close()
	}
	tr.mu.Unlock()
	if requests != 2 {
		t.Errorf("%d requests", requests)
	}
	patch(`{"spec":{"unschedulable":null}}`)
	await("a change after the cut", func() bool { return !nodes.Node("all-1").Spec.Unschedulable })
}
