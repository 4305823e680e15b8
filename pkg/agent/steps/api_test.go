package steps

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
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

// TestLookAtAPI: an API server that is missed for a moment is asked again, or the host would do without the proof that the node is Ready;
// one that refuses the credentials is not.
func TestLookAtAPI(t *testing.T) {
	for _, test := range []struct {
		name    string
		answers []int // the last one for all further requests
		asked   int
		usable  bool
	}{
		{"answers", []int{http.StatusOK}, 1, true},
		{"fails once", []int{http.StatusInternalServerError, http.StatusOK}, 2, true},
		{"is overloaded", []int{http.StatusTooManyRequests, http.StatusOK}, 2, true},
		{"ends the connection", []int{0, http.StatusOK}, 2, true},
		{"does not know the credentials", []int{http.StatusUnauthorized}, 1, false},
		{"refuses", []int{http.StatusForbidden}, 1, false},
		{"has no such node", []int{http.StatusNotFound}, 1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			asked := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !strings.HasPrefix(r.URL.Path, "/api/v1/nodes/") {
					http.NotFound(w, r) // the Lease
					return
				}
				code := test.answers[min(asked, len(test.answers)-1)]
				asked++
				if code == 0 {
					panic(http.ErrAbortHandler)
				}
				w.WriteHeader(code)
				_, _ = fmt.Fprint(w, "{}")
			}))
			defer server.Close()
			path := kubeconfig(t, server.URL)
			i := &inspection{h: &node.Host{Spec: protocol.Spec{Node: "node-1"}}, setup: kubelet.Setup{Args: []string{"kubelet", "--kubeconfig=" + path}}}
			if err := i.lookAtAPI(t.Context()); err != nil {
				t.Fatal(err)
			}
			if usable := i.Kubeconfig != ""; usable != test.usable || asked != test.asked || usable != (len(i.Facts.Warnings) == 0) {
				t.Errorf("usable %t, asked %d times, warnings %q", usable, asked, i.Facts.Warnings)
			}
		})
	}
}

func kubeconfig(t *testing.T, server string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubelet.conf")
	config := fmt.Sprintf("current-context: x\nclusters: [{name: c, cluster: {server: %s}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n"+
		"users: [{name: u, user: {token: t}}]\n", server)
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

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
			if err := waitReady(t.Context(), h, facts.Found{Kubeconfig: kubeconfig(t, server.URL)}, wait, node.Silent{}); err != nil {
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
