package plugin

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

func ranTo(state nodestate.State) func(*corev1.Node) {
	return func(node *corev1.Node) {
		node.Annotations[nodestate.AnnotationRun] = "r1"
		node.Annotations[nodestate.AnnotationPhase] = string(state)
	}
}

func rollbackNodes(t *testing.T, s *apiserver.Server) {
	t.Helper()
	s.CreateNodes(t,
		apiserver.Node("done-1", "containerd://1.6.20", "v1.23.17", ranTo(nodestate.StateDone)),
		apiserver.Node("done-2", "containerd://1.6.20", "v1.23.17", ranTo(nodestate.StateDone), func(n *corev1.Node) { n.Spec.Unschedulable = true }),
		apiserver.Node("prepared-1", "docker://20.10.24", "v1.23.17", ranTo(nodestate.StatePrepared)),
		apiserver.Node("back-1", "docker://20.10.24", "v1.23.17", ranTo(nodestate.StateRolledBack)),
		apiserver.Node("never-1", "containerd://1.6.20", "v1.23.17"),
	)
}

// TestRollbackRefusals has a row per bad input. Nothing may have been changed after any of them.
func TestRollbackRefusals(t *testing.T) {
	s := server.Get(t)
	rollbackNodes(t, s)
	admin := apiserver.Kubeconfig(t, s.Admin())
	reader := apiserver.Kubeconfig(t, s.User(t, "rollback-reader", apiserver.Allow("", "nodes", "get", "list")))
	for _, test := range []struct {
		name string
		args []string
		user string
		code int
		out  string
		errs []string
	}{
		{name: "no nodes", code: 1, errs: []string{"no nodes given", "--selector"}},
		{name: "two ways at once", args: []string{"done-1", "-l", "a=b"}, code: 1, errs: []string{"cannot be combined"}},
		{name: "no terminal", args: []string{"done-1"}, code: 1, errs: []string{"--yes", "--dry-run=client"}},
		{name: "unknown node", args: []string{"nowhere", "-y"}, code: 2, errs: []string{`node "nowhere" not found`}},
		{name: "never switched", args: []string{"done-1", "never-1", "-y"}, code: 2, errs: []string{"node never-1: it was never switched", "nothing was changed"}},
		{name: "no permission", args: []string{"done-1", "-y"}, user: reader, code: 2, errs: []string{"you lack permissions: patch nodes"}},
		{name: "already", args: []string{"back-1", "-y"}, code: 0, out: "node/back-1 already on docker://20.10.24: its last switch was undone\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := admin
			if test.user != "" {
				config = test.user
			}
			r := call(t.Context(), append([]string{"rollback", "--kubeconfig=" + config}, test.args...)...)
			if r.code != test.code || r.out != test.out {
				t.Errorf("exit %d, want %d; out %q, want %q", r.code, test.code, r.out, test.out)
			}
			for _, want := range test.errs {
				if !strings.Contains(r.errOut, want) {
					t.Errorf("%q is not in:\n%s", want, r.errOut)
				}
			}
		})
	}
}

func TestRollbackDryRun(t *testing.T) {
	s := server.Get(t)
	rollbackNodes(t, s)
	switchPod(t, s, "done-1", "rollback-web")
	r := call(t.Context(), "rollback", "--kubeconfig="+apiserver.Kubeconfig(t, s.Admin()), "done-1", "done-2", "prepared-1", "back-1", "--dry-run")
	if r.code != 0 || r.errOut != "" {
		t.Errorf("exit %d\n%s", r.code, r.errOut)
	}
	golden(t, "rollback-dry-run.txt", r.out)
}
