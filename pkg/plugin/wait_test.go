package plugin

import (
	"context"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// claimNode has another run hold a node. It returns what that run does in the end.
func claimNode(t *testing.T, s *apiserver.Server, node string) (release func()) {
	t.Helper()
	ctx := context.Background()
	namespaces, leases := s.Client().CoreV1().Namespaces(), s.Client().CoordinationV1().Leases(nodejob.Namespace)
	namespace, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: nodejob.Namespace}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// No controller empties the namespace here, and other tests want it gone.
		if err := namespaces.Delete(ctx, namespace.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		namespace.Spec.Finalizers, namespace.ResourceVersion = nil, ""
		if _, err := namespaces.Finalize(ctx, namespace, metav1.UpdateOptions{}); err != nil {
			t.Error(err)
		}
	})
	now := time.Now()
	_, err = leases.Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: node, Annotations: map[string]string{nodestate.Prefix + "operation": "switch"}},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: ptr.To("alice@laptop/123-abc"), LeaseDurationSeconds: ptr.To[int32](60),
			AcquireTime: ptr.To(metav1.NewMicroTime(now.Add(-time.Hour))), RenewTime: ptr.To(metav1.NewMicroTime(now)),
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := leases.Delete(ctx, node, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}
}

// TestWait asks for a node that another run has, until that run ends.
func TestWait(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t,
		apiserver.Node("claimed-1", "docker://20.10.24", "v1.23.17"), apiserver.Node("other-1", "docker://20.10.24", "v1.23.17"),
	)
	release := claimNode(t, s, "claimed-1")
	for _, test := range []struct {
		name string
		args []string
		code int
		out  string
		errs []string
	}{
		{"without", nil, 2, "", []string{"node claimed-1: alice@laptop is switching it since", "--wait"}},
		{"too short", []string{"--wait", "--timeout=1s"}, 124, "", []string{"waiting: alice@laptop is switching it", "still claimed after 1s", "nothing was changed"}},
		{"long enough", []string{"--wait"}, 0, "node/claimed-1 would be switched", []string{"waiting: alice@laptop is switching it"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.code == 0 {
				time.AfterFunc(2*time.Second, release)
			}
			r := call(t.Context(), append([]string{"switch", "claimed-1", "--dry-run=client", "--kubeconfig=" + apiserver.Kubeconfig(t, s.Admin())}, test.args...)...)
			if r.code != test.code || !strings.HasPrefix(r.out, test.out) {
				t.Errorf("exit %d, want %d; out %q", r.code, test.code, r.out)
			}
			for _, want := range test.errs {
				if !strings.Contains(r.errOut, want) {
					t.Errorf("%q is not in:\n%s", want, r.errOut)
				}
			}
		})
	}
}
