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

// TestFreshness has a row for each way in which a status can be older or newer than it looks. The kubelet runs since 10:00:00.5 on the clock of
// the first look, 100.5 s after the boot; looks are 10 s apart.
func TestFreshness(t *testing.T) {
	const (
		boot  = "this-boot"
		start = 100*time.Second + 500*time.Millisecond
	)
	at := func(clock string) time.Time {
		parsed, err := time.Parse(time.TimeOnly, clock)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	type look struct {
		status, lease string
		started       time.Duration
		clock         string // of the node's clock
		uptime        time.Duration
		fresh         bool
	}
	second := func(n int) time.Duration { return start + time.Duration(n)*time.Second }
	for _, test := range []struct {
		name, boot string
		looks      []look
	}{
		{"reported after its start", boot, []look{{"10:00:00", "10:00:01", start, "10:00:02", second(2), true}}},
		{"an API server without boot IDs", "", []look{{"10:00:01", "", start, "10:00:02", second(2), true}}},
		{"from an earlier kubelet, in the same boot or in a machine that shares its boot ID", boot, []look{
			{"09:59:59", "09:59:59", start, "10:00:02", second(2), false},
			{"09:59:59", "10:00:03", start, "10:00:12", second(12), false}, // the new kubelet renews before it reports
			{"10:00:13", "10:00:13", start, "10:00:22", second(22), true},
		}},
		{"no kubelet runs", boot, []look{
			{"10:00:01", "10:00:01", 0, "10:00:02", second(2), false},
			{"10:00:01", "10:00:11", 0, "10:00:12", second(12), false},
			{"10:00:01", "10:00:21", 0, "10:00:22", second(22), false},
		}},
		{"the kubelet exits again and again", boot, []look{
			{"10:00:01", "10:00:01", second(10), "10:00:11", second(11), false},
			{"10:00:01", "10:00:11", second(20), "10:00:21", second(21), false},
			{"10:00:01", "10:00:21", second(30), "10:00:31", second(31), false},
		}},
		{"after a reboot with a clock that is behind, an old status lies in the kubelet's life", "earlier-boot", []look{
			{"10:00:01", "10:00:01", start, "10:00:02", second(2), false},
			{"10:00:01", "10:00:01", start, "10:00:12", second(12), false},
		}},
		{"the clock was set back an hour after the report", boot, []look{
			{"10:00:01", "10:00:01", start, "09:00:02", second(2), false},
			{"10:00:01", "09:00:11", start, "09:00:12", second(12), false},
			{"10:00:01", "09:00:21", start, "09:00:22", second(22), true}, // no new status for five minutes, but the kubelet is alive
		}},
		{"the clock was set back an hour before the kubelet's start", boot, []look{
			{"10:30:00", "10:30:00", start, "10:00:02", second(2), false},
			{"10:00:03", "10:00:03", start, "10:00:12", second(12), true},
		}},
		{"the clock was set forward a day after the report", boot, []look{
			{"10:00:01", "10:00:01", start, "23:00:02", second(2), false},
			{"10:00:01", "23:00:11", start, "23:00:12", second(12), false},
			{"10:00:01", "23:00:21", start, "23:00:22", second(22), true},
		}},
		{"a clock set back and no kubelet that lives", boot, []look{
			{"10:00:01", "10:00:01", start, "09:00:02", second(2), false},
			{"10:00:01", "10:00:01", start, "09:00:12", second(12), false},
			{"10:00:01", "10:00:01", start, "09:00:22", second(22), false},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &freshness{bootID: boot}
			for i, look := range test.looks {
				node := kubelet.Node{Reported: at(look.status), BootID: test.boot}
				if look.lease != "" {
					node.Renewed = at(look.lease)
				}
				if err := f.check(node, look.started, look.uptime, at(look.clock)); (err == nil) != look.fresh {
					t.Errorf("look %d: %v", i, err)
				}
			}
		})
	}
}

// TestNotReadyByAnEarlierBoot: power failed after the kubelet had reported the node Ready on containerd. The API server still shows it so, and
// the node does not count as Ready before the kubelet of now has reported.
func TestNotReadyByAnEarlierBoot(t *testing.T) {
	reported := time.Now().Add(-30 * time.Second)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/api/v1/nodes/") {
			_, _ = fmt.Fprintf(w, `{"spec":{"renewTime":%q}}`, reported.UTC().Format(time.RFC3339Nano))
			return
		}
		_, _ = fmt.Fprintf(w, `{"status":{"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":%q}],"nodeInfo":{"containerRuntimeVersion":"containerd://1.6.20"}}}`,
			reported.UTC().Format(time.RFC3339))
	}))
	defer server.Close()
	for _, test := range []struct {
		name, unit string
		ready      bool
	}{
		{"the kubelet was started after the report", kubeletSince(t, 10*time.Second), false},
		{"the kubelet does not come up", "NRestarts=0\nMainPID=0\nExecMainStartTimestampMonotonic=0\n", false},
		{"the kubelet that reported runs", kubeletSince(t, time.Minute), true},
	} {
		h := &node.Host{Spec: protocol.Spec{Node: "node-1"}, Systemd: host.Systemd{Run: nodetest.Says{kubelet.Unit: test.unit}}}
		limit := time.Second
		if test.ready {
			limit = time.Minute
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err := waitReady(ctx, h, facts.Found{Kubeconfig: nodetest.Kubeconfig(t, server.URL)}, readyWait{runtime: "containerd://"}, node.Silent{})
		cancel()
		if (err == nil) != test.ready {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}
