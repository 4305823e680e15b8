package render

import (
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/assess"
)

func TestPlan(t *testing.T) {
	nodes := []PlanNode{
		{"done", "containerd://1.7.24", VerdictNotOnDocker},
		{"n1", "docker://20.10.24", VerdictBlocked},
		{"n2", "docker://20.10.24", VerdictNotBlocked},
		{"silent", "", VerdictUnknown},
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
		golden(t, name, Plan(style, nodes, findings, []string{"drain-bare-pod"}))
	}
	golden(t, "plan-nothing.txt", Plan(Style{Width: width}, nodes[2:3], nil, nil))
	golden(t, "plan-no-docker.txt", Plan(Style{Width: width}, nodes[:1], nil, nil))
}
