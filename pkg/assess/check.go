// Package assess judges, from objects of the API alone, what a switch from Docker to containerd would break or be refused for.
// It is pure: it asks no server and looks at no host. The plan command calls it.
package assess

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
)

// Severity says what a finding means for a switch.
type Severity string

// The severities.
const (
	Blocker Severity = "blocker"
	Warning Severity = "warning"
	Info    Severity = "info"
)

// Category groups checks for people.
type Category string

// The categories.
const (
	Node      Category = "Node"
	Drain     Category = "Drain"
	Workloads Category = "Workloads"
)

// Check is one rule. IDs are stable: --ignore-checks and scripts name them.
type Check struct {
	ID       string   `json:"id"`
	Category Category `json:"category"`
	Severity Severity `json:"severity"`
	Title    string   `json:"title"`
	Why      string   `json:"why"`
	Remedy   string   `json:"remedy"`

	node func(*corev1.Node) string
	pod  func(*subject) string
}

// subject is a pod with what else is known about it.
type subject struct {
	*corev1.Pod
	budgets []policyv1.PodDisruptionBudget
}

// Finding is one check that hit one object on one node.
type Finding struct {
	Check string `json:"check"`
	Node  string `json:"node"`
	// Object is "Kind namespace/name" of the pod's owner, or empty for the node itself.
	Object string `json:"object,omitempty"`
	Detail string `json:"detail"`
}

// Checks are all checks, in the order of the output.
func Checks() []Check { return slices.Concat(nodeChecks, drainChecks, workloadChecks) }

// Input is what Run judges. Pods on other nodes than Nodes are passed over.
type Input struct {
	Nodes   []corev1.Node
	Pods    []corev1.Pod
	Budgets []policyv1.PodDisruptionBudget
	// Ignore are IDs of checks that are not run.
	Ignore []string
}

// ValidateIDs refuses IDs that no check has.
func ValidateIDs(ids []string) error {
	for _, id := range ids {
		if !slices.ContainsFunc(Checks(), func(c Check) bool { return c.ID == id }) {
			return fmt.Errorf("no check is called %q: docs/checks.md lists them", id)
		}
	}
	return nil
}

// Run judges the nodes that are on Docker and their pods, once per owner, node and check. Findings are in the order of Checks,
// then by node and object.
func Run(in Input) []Finding {
	checks := slices.DeleteFunc(Checks(), func(c Check) bool { return slices.Contains(in.Ignore, c.ID) })
	onDocker := map[string]bool{}
	found := map[Finding]int{}
	for i := range in.Nodes {
		node := &in.Nodes[i]
		if inventory.FromNode(node).Runtime != inventory.RuntimeDocker {
			continue
		}
		onDocker[node.Name] = true
		for order, check := range checks {
			if check.node == nil {
				continue
			}
			if detail := check.node(node); detail != "" {
				found[Finding{Check: check.ID, Node: node.Name, Detail: detail}] = order
			}
		}
	}
	budgets := map[string][]policyv1.PodDisruptionBudget{}
	for _, budget := range in.Budgets {
		budgets[budget.Namespace] = append(budgets[budget.Namespace], budget)
	}
	for i := range in.Pods {
		pod := &in.Pods[i]
		if !onDocker[pod.Spec.NodeName] || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		for order, check := range checks {
			if check.pod == nil {
				continue
			}
			if detail := check.pod(&subject{pod, budgets[pod.Namespace]}); detail != "" {
				found[Finding{Check: check.ID, Node: pod.Spec.NodeName, Object: Owner(pod), Detail: detail}] = order
			}
		}
	}
	return sorted(found)
}

func sorted(found map[Finding]int) []Finding {
	findings := make([]Finding, 0, len(found))
	for finding := range found {
		findings = append(findings, finding)
	}
	slices.SortFunc(findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(found[a], found[b]), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Detail, b.Detail))
	})
	return findings
}

// Owner names what a person would edit: "Kind namespace/name". A ReplicaSet whose name ends in its pods' pod-template-hash is
// a Deployment's (kubernetes pkg/controller/deployment/sync.go names it so), which saves listing every ReplicaSet.
func Owner(pod *corev1.Pod) string {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return "Pod " + pod.Namespace + "/" + pod.Name
	}
	if hash := pod.Labels["pod-template-hash"]; owner.Kind == "ReplicaSet" && hash != "" {
		if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok {
			return "Deployment " + pod.Namespace + "/" + name
		}
	}
	return owner.Kind + " " + pod.Namespace + "/" + owner.Name
}

// Markdown is docs/checks.md.
func Markdown() string {
	var text strings.Builder
	text.WriteString("# Checks of `kubectl runtime plan`\n\nGenerated from pkg/assess: `go test ./pkg/assess -update` writes it anew.\n")
	for _, check := range Checks() {
		fmt.Fprintf(&text, "\n## %s\n\n%s, %s: %s.\n\n- Why: %s.\n- What to do: %s.\n", check.ID, check.Category, check.Severity, check.Title, check.Why, check.Remedy)
	}
	return text.String()
}
