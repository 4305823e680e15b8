package plugin

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// TestStatusOfOneNode has a row for each state that a run can leave.
func TestStatusOfOneNode(t *testing.T) {
	s := server.Get(t)
	ran := func(state nodestate.State) func(*corev1.Node) {
		return func(n *corev1.Node) {
			n.Annotations[nodestate.AnnotationPhase] = string(state)
			n.Annotations[nodestate.AnnotationRun] = "20261124-053000-abcde"
			n.Annotations[nodestate.AnnotationMessage] = "drain: it\x1b[31m says so"
			n.Annotations[nodestate.AnnotationAgentImage] = cli.AgentRepository + ":v0.0.0-test"
			if state == nodestate.StateFailed {
				n.Annotations[nodestate.AnnotationAgentImage] = "registry.example/agent:9"
			}
		}
	}
	const docker, containerd = "docker://20.10.24", "containerd://1.7.24"
	admin := apiserver.Kubeconfig(t, s.Admin())
	begun := time.Date(2026, 11, 24, 5, 30, 0, 0, time.UTC).Local().Format(time.DateTime)
	goesOn := func(name, command, does string) string {
		return fmt.Sprintf("next:     `kubectl runtime %s %s --kubeconfig=%s` %s", command, name, admin, does)
	}
	for _, test := range []struct {
		name, runtime string
		state         nodestate.State
		want, without []string
	}{
		{"node-preparing", docker, nodestate.StatePreparing, []string{goesOn("node-preparing", "switch", "resumes it"), goesOn("node-preparing", "rollback", "undoes it")}, nil},
		{"node-cutover", docker, nodestate.StateCutover, []string{goesOn("node-cutover", "switch", "resumes it"), goesOn("node-cutover", "rollback", "undoes it")}, nil},
		{"node-going-back", containerd, nodestate.StateRollingBack, []string{goesOn("node-going-back", "rollback", "resumes the rollback")}, []string{"runtime switch node-going-back"}},
		{"node-broken", docker, nodestate.StateBroken, []string{goesOn("node-broken", "rollback", "tries again, once")}, []string{"runtime switch node-broken"}},
		{"node-done", containerd, nodestate.StateDone, []string{goesOn("node-done", "rollback", "goes back")}, []string{"runtime switch node-done"}},
		{"node-by-hand", docker, nodestate.StateDone, []string{goesOn("node-by-hand", "rollback", "proves the node, if its agent has undone the run by hand"), goesOn("node-by-hand", "switch", "switches it again")}, nil},
		{"node-back", docker, nodestate.StateRolledBack, []string{goesOn("node-back", "switch", "tries again")}, []string{"runtime rollback node-back", "agent:"}},
		{"node-failed", docker, nodestate.StateFailed, []string{
			goesOn("node-failed", "switch", "tries again"), "\n  agent:    registry.example/agent:9: give that run's --image again, and its other flags on the agent's pods\n",
		}, nil},
	} {
		s.CreateNodes(t, apiserver.Node(test.name, test.runtime, "v1.23.17", ran(test.state)))
		r := call(t.Context(), "status", test.name, "--kubeconfig="+admin)
		want := append(test.want, "node "+test.name+":\n  state:    "+string(test.state)+"\n  run:      20261124-053000-abcde, started "+begun+
			"\n  message:  drain: it\\u001b[31m says so\n  claim:    <none>: no run is at work on it\n")
		for _, text := range want {
			if !strings.Contains(r.errOut, text) {
				t.Errorf("%s: %q is not in:\n%s", test.name, text, r.errOut)
			}
		}
		for _, text := range test.without {
			if strings.Contains(r.errOut, text) {
				t.Errorf("%s: %q is in:\n%s", test.name, text, r.errOut)
			}
		}
		if strings.Contains(r.out, "claim") || r.code != 0 {
			t.Errorf("%s: exit %d:\n%s", test.name, r.code, r.out)
		}
	}
	t.Cleanup(claimNode(t, s, "node-cutover"))
	r := call(t.Context(), "status", "node-cutover", "--kubeconfig="+admin)
	for _, text := range []string{"claim:    alice@laptop is switching it since", "`kubectl runtime switch node-cutover --wait --kubeconfig="} {
		if !strings.Contains(r.errOut, text) {
			t.Errorf("%q is not in:\n%s", text, r.errOut)
		}
	}
	reader := apiserver.Kubeconfig(t, s.User(t, "status-reader", apiserver.Allow("", "nodes", "get", "list")))
	if r := call(t.Context(), "status", "node-cutover", "--kubeconfig="+reader); r.code != 0 || !strings.Contains(r.errOut, "claim:    <unknown>: ") {
		t.Errorf("exit %d:\n%s", r.code, r.errOut)
	}
	for _, args := range [][]string{{"-o", "json"}, {"--no-headers"}, {"node-done"}} {
		if r := call(t.Context(), append([]string{"status", "node-back", "--kubeconfig=" + admin}, args...)...); strings.Contains(r.errOut, "claim:") {
			t.Errorf("%v: %s", args, r.errOut)
		}
	}
}
