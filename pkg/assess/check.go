// Package assess judges, from objects of the API alone, what a switch from Docker to containerd would break or be refused for.
// It is pure: it asks no server and looks at no host. The plan command calls it.
package assess

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

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

// Categories are all categories, in the order of the output.
func Categories() []Category { return []Category{Node, Drain, Workloads} }

// Check is one rule. IDs are stable: --ignore-checks and scripts name them.
type Check struct {
	ID       string   `json:"id"`
	Category Category `json:"category"`
	Severity Severity `json:"severity"`
	Title    string   `json:"title"`
	Why      string   `json:"why"`
	Remedy   string   `json:"remedy"`

	// OnHost: the agent finds it on the host, not Run in the API.
	OnHost bool `json:"onHost,omitempty"`

	// fixed: the switch itself refuses what the check finds, so that to ignore it would help nobody. Flag is the switch's that accepts it.
	fixed bool
	flag  string
	// accepted says whether the switch's flags accept what the check finds: it is of Info then.
	accepted func(Flags) bool
	node     func(*corev1.Node) string
	pod      func(*subject) string
}

// Flags are those of the switch that cure findings.
type Flags struct{ Force, DeleteEmptyDirData, DisableEviction bool }

// severity is what a finding means with these flags.
func (c Check) severity(flags Flags) Severity {
	if c.accepted != nil && c.accepted(flags) {
		return Info
	}
	return c.Severity
}

// subject is a pod with what else is known about it.
type subject struct {
	*corev1.Pod
	budgets []policyv1.PodDisruptionBudget
	// evicted: a drain would remove it.
	evicted bool
	// siblings are how many pods of the same owner the cluster has, itself included; 0 where that is not known.
	siblings int
	local    map[string]string // what ties a claim to a node, by namespace/name
}

// Finding is one check that hit one object on one node.
type Finding struct {
	Check    string
	Category Category
	Severity Severity
	// Node is empty for what is not on a node yet.
	Node string
	// Kind, Namespace and Name are those of the pod's owner, and empty for the node itself.
	Kind      string
	Namespace string
	Name      string
	Detail    string
	// Hint is what to do about this one, where the check's remedy is not enough.
	Hint string
}

// Checks are all checks, in the order of the output.
func Checks() []Check { return slices.Concat(nodeChecks, hostChecks, drainChecks, workloadChecks) }

// CheckByID is the check of a finding; the zero Check if there is none of that ID.
func CheckByID(id string) Check {
	for _, check := range Checks() {
		if check.ID == id {
			return check
		}
	}
	return Check{}
}

// Input is what Run judges. Pods on other nodes than Nodes are passed over.
type Input struct {
	Nodes   []corev1.Node
	Pods    []corev1.Pod
	Budgets []policyv1.PodDisruptionBudget
	// Claims and Volumes tell which pods' data is on one node alone; nil where nobody looked.
	Claims  []corev1.PersistentVolumeClaim
	Volumes []corev1.PersistentVolume
	// Everything says that Pods are all of the cluster's, and AllNodes its nodes: without, nothing is said of room and replicas.
	Everything bool
	AllNodes   []corev1.Node
	// Templates are what is not a pod yet, such as a CronJob's template: the checks of Workloads are run on them, for no node.
	Templates []Template
	// Evicted selects the pods that a drain removes, by their labels; nil for all.
	Evicted labels.Selector
	// Alone says that the cluster has no other node.
	Alone bool
	Flags Flags
	// Keep are labels of pods that are the switch's own, and are passed over.
	Keep map[string]string
	// Ignore are IDs of checks that are not run.
	Ignore []string
}

// Template is a pod that a workload will make.
type Template struct {
	Kind, Namespace, Name string
	Spec                  corev1.PodSpec
}

// ValidateIDs refuses IDs that no check has, and checks that the switch would refuse by anyway.
func ValidateIDs(ids []string) error {
	for _, id := range ids {
		check := CheckByID(id)
		switch {
		case check.ID == "":
			return fmt.Errorf("no check is called %q: docs/checks.md lists them", id)
		case check.flag != "":
			return fmt.Errorf("%s cannot be ignored: a switch refuses what it finds, unless %s accepts it", id, check.flag)
		case check.fixed:
			return fmt.Errorf("%s cannot be ignored: a switch refuses what it finds", id)
		}
	}
	return nil
}

// OnDocker says whether a node is one that Run judges.
func OnDocker(node *corev1.Node) bool {
	return inventory.FromNode(node).Runtime == inventory.RuntimeDocker
}

// Run judges the nodes that are on Docker and their pods, once per owner, node and check. Findings are in the order of Checks,
// then by node and object.
func Run(in Input) []Finding {
	checks := slices.DeleteFunc(Checks(), func(c Check) bool {
		return slices.Contains(in.Ignore, c.ID) || c.ID == checkOnlyNode && !in.Alone
	})
	found := map[Finding]int{}
	add := func(order int, finding Finding) {
		check := checks[order]
		if finding.Detail != "" {
			finding.Check, finding.Category, finding.Severity = check.ID, check.Category, check.severity(in.Flags)
			found[finding] = order
		}
	}
	onDocker := map[string]bool{}
	room := newRoom(in)
	for i := range in.Nodes {
		node := &in.Nodes[i]
		if !OnDocker(node) {
			continue
		}
		onDocker[node.Name] = true
		for order, check := range checks {
			switch {
			case check.node != nil:
				add(order, Finding{Node: node.Name, Detail: check.node(node)})
			case check.ID == checkRoom:
				add(order, Finding{Node: node.Name, Detail: room.lacks(node.Name)})
			}
		}
	}
	cluster := newSurroundings(in)
	for i := range in.Pods {
		pod := &in.Pods[i]
		if !onDocker[pod.Spec.NodeName] || in.passedOver(pod) {
			continue
		}
		kind, name := Owner(pod)
		subject := cluster.of(pod)
		for order, check := range checks {
			if check.pod != nil {
				add(order, Finding{Node: pod.Spec.NodeName, Kind: kind, Namespace: pod.Namespace, Name: name, Detail: check.pod(subject)})
			}
		}
	}
	for _, t := range in.Templates {
		for order, check := range checks {
			if check.Category == Workloads {
				add(order, Finding{Kind: t.Kind, Namespace: t.Namespace, Name: t.Name, Detail: check.pod(&subject{Pod: &corev1.Pod{Spec: t.Spec}})})
			}
		}
	}
	return sorted(found)
}

// passedOver tells pods that no longer run, and the switch's own.
func (in Input) passedOver(pod *corev1.Pod) bool {
	return finished(pod) || len(in.Keep) > 0 && labels.SelectorFromSet(in.Keep).Matches(labels.Set(pod.Labels))
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func sorted(found map[Finding]int) []Finding {
	findings := make([]Finding, 0, len(found))
	for finding := range found {
		findings = append(findings, finding)
	}
	slices.SortFunc(findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(found[a], found[b]), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Namespace, b.Namespace),
			cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Detail, b.Detail), cmp.Compare(a.Hint, b.Hint))
	})
	return findings
}

// Owner is the kind and name of what a person would edit. A ReplicaSet whose name ends in its pods' pod-template-hash is a
// Deployment's (kubernetes pkg/controller/deployment/sync.go names it so), which saves listing every ReplicaSet. A static pod,
// which the API shows as controlled by its node, is a file there and is a workload of its own.
func Owner(pod *corev1.Pod) (kind, name string) {
	owner := metav1.GetControllerOf(pod)
	if owner == nil || isStatic(pod) {
		return "Pod", pod.Name
	}
	if hash := pod.Labels["pod-template-hash"]; owner.Kind == "ReplicaSet" && hash != "" {
		if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok {
			return "Deployment", name
		}
	}
	if owner.Kind == "Job" {
		if name, ok := cronJob(pod, owner.Name); ok {
			return "CronJob", name
		}
	}
	return owner.Kind, owner.Name
}

// cronJob takes a CronJob's name from its Job's, which ends in the minute that it was scheduled for (kubernetes
// pkg/controller/cronjob/utils.go, getJobName). A number that is not near the pod's creation is somebody's own.
func cronJob(pod *corev1.Pod, job string) (string, bool) {
	at := strings.LastIndexByte(job, '-')
	minute, err := strconv.ParseInt(job[at+1:], 10, 64)
	if at < 0 || err != nil {
		return "", false
	}
	const week = 7 * 24 * 60
	age := pod.CreationTimestamp.Unix()/60 - minute
	return job[:at], age >= -1 && age < week
}

func isStatic(pod *corev1.Pod) bool {
	_, static := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return static
}

// Markdown is docs/checks.md.
func Markdown() string {
	var text strings.Builder
	text.WriteString("# Checks of `kubectl runtime plan`\n\nGenerated from pkg/assess: `go test ./pkg/assess -update` rewrites it.\n")
	for _, check := range Checks() {
		where, ignored := "", "."
		if check.OnHost {
			where = ", found on the host"
		}
		switch {
		case check.flag != "":
			ignored = "; it cannot be ignored, only accepted with `" + check.flag + "`."
		case check.fixed:
			ignored = "; it cannot be ignored."
		}
		fmt.Fprintf(&text, "\n## %s\n\n%s, %s%s: %s.\n\n- Why: %s.\n- What to do: %s%s\n",
			check.ID, check.Category, check.Severity, where, check.Title, check.Why, check.Remedy, ignored)
	}
	return text.String()
}
