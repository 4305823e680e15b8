package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// seededChecks is what plan is to find on a node with dependent.yaml and seedHost, by check.
var seededChecks = map[string]string{
	protocol.CheckForeign: "blocker", protocol.CheckUnits: "blocker", protocol.CheckKillMode: "blocker", protocol.CheckSettingLost: "warning",
	protocol.CheckSetting: "info", protocol.CheckLimits: "info", protocol.CheckDisk: "info", protocol.CheckVersions: "info",

	"drain-budget-never": "blocker", "drain-budget": "warning", "drain-bare-pod": "blocker", "drain-empty-dir": "blocker",
	"drain-local-volume": "warning", "drain-single-replica": "info", "drain-no-room": "warning",

	"workload-docker-socket": "warning", "workload-docker-data": "warning", "workload-docker-parent": "info", "workload-docker-host": "warning",
	"workload-docker-in-docker": "info", "workload-gpu-default-runtime": "warning", "workload-log-agent": "warning",
	"workload-image-digest": "info", "workload-static-pod": "info",
}

// killModeDropIn has systemd kill the shims of Docker's containers when it restarts containerd.
const killModeDropIn = "/etc/systemd/system/containerd.service.d/50-seeded.conf"

// testPlanFinds seeds node-2, and has plan find all of that and nothing else; a switch refuses.
func (c *cluster) testPlanFinds(t *testing.T) {
	defer c.seed(t, "node-2", "node-1")()
	eventually(t, 2*time.Minute, func() string { // the budgets' controller takes its time
		return c.lacks(c.run(t, "runtime", "plan", "node-2", "--api-only", "-o", "json").stdout, func(check string) bool { return !strings.HasPrefix(check, "host-") })
	})
	r := c.runtime(t, 2, "plan", "node-2", "--image", agentImage, "-o", "json")
	if lacks := c.lacks(r.stdout, func(string) bool { return true }); lacks != "" {
		t.Error(lacks)
	}
	text := c.runtime(t, 2, "plan", "node-2", "--image", agentImage, "--force", "--delete-emptydir-data")
	for _, want := range []string{"Deployment/socket", "DaemonSet/logs", "CronJob/gpu", "Docker's init: ", "BindsTo=docker.service", "KillMode=control-group (" + killModeDropIn + ":2)", "4 findings block a switch"} {
		if !strings.Contains(text.stdout+text.stderr, want) {
			t.Errorf("the plan for people does not say %q", want)
		}
	}
	c.nothingLeft(t, "node-2")
	pods := c.podIDs(t, "node-2")
	if r := c.switchNode(t, 2, "node-2"); !strings.Contains(r.stderr, "dependent/bare") || strings.Contains(r.stderr, "budget-never") {
		t.Errorf("what a drain refuses is to be said first, as ever:\n%s", r.stderr)
	}
	if r := c.switchNode(t, 2, "node-2", "--force", "--delete-emptydir-data"); !strings.Contains(r.stderr, "drain-budget-never: StatefulSet dependent/dind") {
		t.Errorf("a budget that allows nothing does not refuse:\n%s", r.stderr)
	}
	c.untouched(t, "node-2", pods)
}

// lacks compares a plan's findings with seededChecks, of which it takes those that are asked for.
func (c *cluster) lacks(plan string, asked func(string) bool) string {
	var found struct {
		Findings []struct{ Check, Severity, Node, Kind, Name string }
	}
	if err := json.Unmarshal([]byte(plan), &found); err != nil {
		return err.Error()
	}
	got := map[string]string{}
	for _, f := range found.Findings {
		got[f.Check] = f.Severity
		if f.Node != "node-2" && (f.Node != "" || f.Kind != "CronJob") {
			return fmt.Sprintf("found on another node: %+v", f)
		}
	}
	want := maps.Clone(seededChecks)
	maps.DeleteFunc(want, func(check, _ string) bool { return !asked(check) })
	if maps.Equal(got, want) {
		return ""
	}
	var text []string
	for _, check := range slices.Sorted(maps.Keys(seededChecks)) {
		if asked(check) && got[check] != want[check] {
			text = append(text, fmt.Sprintf("%s is %q, want %q", check, got[check], want[check]))
		}
		delete(got, check)
	}
	return strings.Join(text, "; ") + fmt.Sprintf("; false alarms: %v", got)
}

// seed makes a node depend on Docker in every way that plan knows, until the function that it returns is called.
func (c *cluster) seed(t *testing.T, node, other string) func() {
	t.Helper()
	manifest, err := os.ReadFile("dependent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cpu, err := resource.ParseQuantity(c.kubectl(t, "get", "node", node, "-o", "jsonpath={.status.allocatable.cpu}"))
	if err != nil {
		t.Fatal(err)
	}
	large := fmt.Sprintf("%dm", cpu.MilliValue()*6/10)
	path := filepath.Join(t.TempDir(), "dependent.yaml")
	if err := os.WriteFile(path, []byte(strings.NewReplacer("NODE", node, "OTHER", other, "LARGE", large).Replace(string(manifest))), 0o600); err != nil {
		t.Fatal(err)
	}
	const dropIns = "/etc/systemd/system/kubelet.service.d"
	const dropIn = dropIns + "/50-seeded.conf"
	undo := func() {
		c.exec(t, node, "rm -f "+dropIn+" "+killModeDropIn+"; rmdir --ignore-fail-on-non-empty "+dropIns+" "+filepath.Dir(killModeDropIn)+"; rm -f /etc/kubernetes/manifests/seeded.yaml; mv /etc/docker/daemon.json.seeded /etc/docker/daemon.json; docker rm -f foreign >/dev/null; systemctl daemon-reload")
		c.kubectl(t, "delete", "-f", path, "--timeout", "3m")
		c.waitPods(t)
	}
	c.exec(t, node, `set -e; mkdir -p `+dropIns+`; printf '[Unit]\nBindsTo=docker.service\n' > `+dropIn+`
		mkdir -p `+filepath.Dir(killModeDropIn)+`; printf '[Service]\nKillMode=control-group\n' > `+killModeDropIn+` && systemctl daemon-reload
		cp -a /etc/docker/daemon.json /etc/docker/daemon.json.seeded && sed -i '0,/{/s//{"init": true,/' /etc/docker/daemon.json
		docker run -d --name foreign lab.local/busybox:1 /bin/busybox sleep 100000 >/dev/null
		mkdir -p /var/lib/lab-dependent
		printf '%s' '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"seeded","namespace":"kube-system"},"spec":{"hostNetwork":true,"containers":[{"name":"c","image":"lab.local/nothing:1"}]}}' > /etc/kubernetes/manifests/seeded.yaml`)
	c.kubectl(t, "apply", "-f", path)
	return undo
}
