package render

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/assess"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

func TestPlan(t *testing.T) {
	nodes := []v1alpha1.PlanNode{
		{Name: "done", Runtime: "containerd://1.7.24", Verdict: v1alpha1.VerdictNotOnDocker},
		{Name: "n1", Runtime: "docker://20.10.24", Verdict: v1alpha1.VerdictBlocked},
		{Name: "n2", Runtime: "docker://20.10.24", Verdict: v1alpha1.VerdictNotBlocked},
		{Name: "silent", Verdict: v1alpha1.VerdictUnknown},
	}
	findings := []assess.Finding{
		{Check: "drain-budget", Category: assess.Drain, Severity: assess.Warning, Node: "n1", Kind: "StatefulSet", Namespace: "shop", Name: "db", Detail: "PodDisruptionBudget db: 3 healthy, needs 3"},
		{Check: "drain-empty-dir", Category: assess.Drain, Severity: assess.Blocker, Node: "n1", Kind: "Deployment", Namespace: "kube-system", Name: "metrics-server", Detail: "volume tmp-dir"},
		{Check: "drain-empty-dir", Category: assess.Drain, Severity: assess.Blocker, Node: "n1", Kind: "Deployment", Namespace: "shop", Name: "web", Detail: "volume \x1b[31mtmp"},
		{Check: "workload-docker-parent", Category: assess.Workloads, Severity: assess.Info, Node: "n2", Kind: "DaemonSet", Namespace: "monitoring", Name: "node-exporter", Detail: "/"},
	}
	width := func() int { return 80 }
	for name, style := range map[string]Style{
		"plan-ascii.txt": {Width: width}, "plan-unicode.txt": {Width: width, Unicode: true},
	} {
		golden(t, name, Plan(style, PlanView{Nodes: nodes, Findings: findings, Ignored: []string{"drain-bare-pod"}, Order: []string{"n2", "n1"}}))
	}
	golden(t, "plan-nothing.txt", Plan(Style{Width: width}, PlanView{Nodes: nodes[2:3], Order: []string{"n2"}, Measured: 1, Times: nodeswitch.Times{Prepare: time.Minute, Drain: time.Second, Cutover: 20 * time.Second, Verify: 9 * time.Second}}))
	// A host that could not be looked at is no reason to say that there is nothing to switch.
	unknown := v1alpha1.PlanNode{Name: "n4", Runtime: "docker://20.10.24", Verdict: v1alpha1.VerdictUnknown, HostNote: "pod does not start"}
	golden(t, "plan-unknown.txt", Plan(Style{Width: width}, PlanView{Nodes: []v1alpha1.PlanNode{unknown}, Order: []string{"n4"}}))
	golden(t, "plan-no-docker.txt", Plan(Style{Width: width}, PlanView{Nodes: nodes[:1]}))
	var many []string
	for i := range orderedAtMost + 2 {
		many = append(many, fmt.Sprintf("w%d", i))
	}
	golden(t, "plan-hosts.txt", Plan(Style{Width: width}, PlanView{Nodes: hostNodes(), Order: many, Notes: []string{"You may not list CronJobs."}, Findings: []assess.Finding{
		{Check: protocol.CheckForeign, Category: assess.Node, Severity: assess.Blocker, Node: "n3", Detail: "Docker runs 1 container(s): db", Hint: "stop them"},
		{Check: protocol.CheckVersions, Category: assess.Node, Severity: assess.Info, Node: "n1", Detail: "kubelet v1.23.17"},
		{Check: protocol.CheckVersions, Category: assess.Node, Severity: assess.Info, Node: "n2", Detail: "kubelet v1.23.17"},
		{Check: protocol.CheckVersions, Category: assess.Node, Severity: assess.Info, Node: "n3", Detail: "kubelet v1.23.17"},
		{Check: protocol.CheckVersions, Category: assess.Node, Severity: assess.Info, Node: "n4", Detail: "kubelet v1.23.17"},
		{Check: "workload-docker-socket", Category: assess.Workloads, Severity: assess.Warning, Kind: "CronJob", Namespace: "ops", Name: "nightly", Detail: "/run/docker.sock"},
	}, Measured: 2, Times: nodeswitch.Times{Prepare: time.Minute, Cutover: 20 * time.Second}}))
}

// TestPlanOfOddOwners: who makes a pod names its owner as they like, and no line of a plan is theirs.
func TestPlanOfOddOwners(t *testing.T) {
	finding := assess.Finding{Check: "drain-empty-dir", Category: assess.Drain, Severity: assess.Warning, Node: "n1", Namespace: "shop", Kind: "Odd\nhint: x", Name: "a\tb\nhint: y"}
	text := Plan(Style{Width: func() int { return 80 }}, PlanView{Nodes: []v1alpha1.PlanNode{{Name: "n1"}}, Findings: []assess.Finding{finding}, Order: []string{"n1"}})
	if strings.Contains(text, "\nhint: ") || !strings.Contains(text, "Odd hint: x/a b hint: y") {
		t.Error(text)
	}
}

// hostNodes are two that are alike, one whose files are not known, and one that was not looked at.
func hostNodes() []v1alpha1.PlanNode {
	steps := []protocol.PlanStep{
		{Phase: protocol.PhasePrepare, ID: "containerd-config", Title: "Configure containerd"},
		{Phase: protocol.PhaseCutover, ID: "docker-stop", Title: "Stop Docker"},
	}
	files := []protocol.FileChange{
		{Step: "containerd-config", Path: "/etc/containerd/config.toml", Action: protocol.ActionUpdate, Diff: "--- /etc/containerd/config.toml\n+++ /etc/containerd/config.toml\n@@ -1,1 +1,1 @@\n-  a = \"\x1b[31m\"\n+\tb = 1\n"},
		{Step: "containerd-config", Path: "/etc/containerd/certs.d/r/hosts.toml", Action: protocol.ActionUpdate},
		{Step: "docker-stop", Path: "/etc/systemd/system/multi-user.target.wants/docker.service", Action: protocol.ActionRemove, Link: "/lib/systemd/system/docker.service"},
	}
	node := v1alpha1.PlanNode{Name: "n1", Runtime: "docker://20.10.24", Verdict: v1alpha1.VerdictNotBlocked, HostInspected: true, Steps: steps, Files: files}
	same, blocked := node, node
	same.Name = "n2"
	blocked.Name, blocked.Verdict, blocked.Files = "n3", v1alpha1.VerdictBlocked, nil
	return []v1alpha1.PlanNode{node, same, blocked, {Name: "n4", Runtime: "docker://20.10.24", Verdict: v1alpha1.VerdictUnknown, HostNote: "pod does not start"}}
}
