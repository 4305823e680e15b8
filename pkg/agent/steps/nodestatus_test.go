package steps

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestTooEarlyStatus: a kubelet that reported before it had looked at its containers is started once more, once; no other one is.
func TestTooEarlyStatus(t *testing.T) {
	const tooEarly = "[PLEG is not healthy: pleg has yet to be successful]"
	status := func(ready, message, runtime string) string {
		return fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":%q,"message":%q,"lastHeartbeatTime":%q}],"nodeInfo":{"containerRuntimeVersion":%q}}}`,
			ready, message, time.Now().UTC().Format(time.RFC3339), runtime)
	}
	ready := status("True", "", "containerd://1.6.20")
	for _, test := range []struct {
		name    string
		answers []string // the last one for all further requests
		again   int
	}{
		{"Ready at once", []string{ready}, 0},
		{"too early", []string{status("False", tooEarly, "containerd://1.6.20"), ready}, 1},
		{"too early twice", []string{status("False", tooEarly, "containerd://1.6.20"), status("False", tooEarly, "containerd://1.6.20"), ready}, 1},
		{"another reason", []string{status("False", "container runtime network not ready", "containerd://1.6.20"), ready}, 0},
		{"still the old runtime's", []string{status("False", tooEarly, "docker://20.10.24"), ready}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			asked, again := 0, 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !strings.HasPrefix(r.URL.Path, "/api/v1/nodes/") {
					http.NotFound(w, r) // the Lease
					return
				}
				_, _ = fmt.Fprint(w, test.answers[min(asked, len(test.answers)-1)])
				asked++
			}))
			defer server.Close()
			h := &node.Host{Spec: protocol.Spec{Node: "node-1"}, Systemd: host.Systemd{Run: nodetest.Says{kubelet.Unit: kubeletSince(t, time.Minute)}}}
			wait := readyWait{runtime: "containerd://", startAgain: func(context.Context) error { again++; return nil }}
			if err := waitReady(t.Context(), h, facts.Found{Kubeconfig: nodetest.Kubeconfig(t, server.URL)}, wait, node.Silent{}); err != nil {
				t.Fatal(err)
			}
			if again != test.again || asked != len(test.answers) {
				t.Errorf("started again %d times after %d answers", again, asked)
			}
		})
	}
}

// kubeletSince is what systemd shows of a kubelet that was started some time ago.
func kubeletSince(t *testing.T, ago time.Duration) string {
	t.Helper()
	up, err := uptime()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("NRestarts=0\nMainPID=1\nExecMainStartTimestampMonotonic=%d\n", (up - ago).Microseconds())
}
