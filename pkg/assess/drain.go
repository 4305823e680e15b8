package assess

import (
	"fmt"
	"path"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// checkRoom is about a node's pods as a whole: see room.go.
const checkRoom = "drain-no-room"

var drainChecks = []Check{
	{
		ID: "drain-budget-never", Category: Drain, Severity: Blocker, Title: "A PodDisruptionBudget never allows the eviction",
		Why:      "it needs as many healthy pods as there are, so that the drain would wait for its whole timeout, with the node cordoned, and fail",
		Remedy:   "add replicas, or relax the budget for the time of the switch; `--disable-eviction` deletes past it, and `--ignore-checks drain-budget-never` tries all the same",
		accepted: func(f Flags) bool { return f.DisableEviction },
		pod:      drained(never),
	},
	{
		ID: "drain-budget", Category: Drain, Severity: Warning, Title: "A PodDisruptionBudget allows no disruption now",
		Why:    "the drain waits until the budget allows the eviction, or its timeout ends it",
		Remedy: "wait until its pods are healthy, add replicas, or relax the budget for the time of the switch",
		pod: drained(func(s *subject) string {
			if never(s) != "" {
				return ""
			}
			return exhaustedBudget(s)
		}),
	},
	{
		ID: "drain-bare-pod", Category: Drain, Severity: Blocker, Title: "No controller would recreate the pod",
		Why:      "a drain refuses to remove such a pod unless it is forced, and the pod is then gone for good",
		Remedy:   "delete the pod, give it a controller, or give `--force` to the switch",
		flag:     "--force",
		accepted: func(f Flags) bool { return f.Force },
		pod: drained(func(s *subject) string {
			if metav1.GetControllerOf(s.Pod) != nil {
				return ""
			}
			return "the pod has no controller"
		}),
	},
	{
		ID: "drain-empty-dir", Category: Drain, Severity: Blocker, Title: "The pod has an emptyDir volume",
		Why:      "what is in it is lost when the pod is evicted, and a switch refuses that without a flag",
		Remedy:   "see that the data can be lost, then give `--delete-emptydir-data` to the switch",
		flag:     "--delete-emptydir-data",
		accepted: func(f Flags) bool { return f.DeleteEmptyDirData },
		pod: drained(volume(func(v *corev1.Volume) string {
			if v.EmptyDir == nil {
				return ""
			}
			return "volume " + v.Name
		})),
	},
	{
		ID: "drain-local-volume", Category: Drain, Severity: Warning, Title: "The pod's volume is on this node alone",
		Why:    "the pod can run nowhere else, and is away until the node is back; the data stays",
		Remedy: "see that the application does without this pod for the time, some minutes",
		pod:    drained(localVolume),
	},
	{
		ID: "drain-single-replica", Category: Drain, Severity: Info, Title: "The pod is its owner's only one",
		Why:    "what it serves is away until another pod runs on another node",
		Remedy: "add a replica for the time of the switch, where that matters",
		pod: drained(func(s *subject) string {
			kind, _ := Owner(s.Pod)
			if s.siblings != 1 || !slices.Contains([]string{"Deployment", "StatefulSet", "ReplicaSet", "ReplicationController"}, kind) {
				return ""
			}
			return "1 pod"
		}),
	},
	{
		ID: checkRoom, Category: Drain, Severity: Warning, Title: "The other nodes may lack room for the pods",
		Why:    "pods that fit nowhere stay Pending until the node is back",
		Remedy: "add a node for the time of the switch, or see that these pods can be away",
	},
}

// drained restricts a rule to pods that a drain removes: neither static pods nor those of DaemonSets, of
// which it knows only Kubernetes' own (k8s.io/kubectl pkg/drain/filters.go).
func drained(rule func(*subject) string) func(*subject) string {
	return func(s *subject) string {
		if !s.evicted {
			return ""
		}
		return rule(s)
	}
}

func removedByDrain(pod *corev1.Pod) bool {
	owner := metav1.GetControllerOf(pod)
	return !isStatic(pod) && (owner == nil || owner.Kind != "DaemonSet" || owner.APIVersion != appsv1.SchemeGroupVersion.String())
}

// surroundings are what the checks of pods need to know of the cluster.
type surroundings struct {
	in      Input
	budgets map[string][]policyv1.PodDisruptionBudget
	owned   map[string]int
	local   map[string]string
}

func newSurroundings(in Input) surroundings {
	s := surroundings{in: in, budgets: map[string][]policyv1.PodDisruptionBudget{}, owned: map[string]int{}, local: localClaims(in)}
	for _, budget := range in.Budgets {
		s.budgets[budget.Namespace] = append(s.budgets[budget.Namespace], budget)
	}
	for i := range in.Pods {
		if in.Everything && !finished(&in.Pods[i]) {
			s.owned[ownerKey(&in.Pods[i])]++
		}
	}
	return s
}

func ownerKey(pod *corev1.Pod) string {
	kind, name := Owner(pod)
	return path.Join(pod.Namespace, kind, name)
}

func (s surroundings) of(pod *corev1.Pod) *subject {
	evicted := removedByDrain(pod) && (s.in.Evicted == nil || s.in.Evicted.Matches(labels.Set(pod.Labels)))
	return &subject{Pod: pod, budgets: s.budgets[pod.Namespace], evicted: evicted, siblings: s.owned[ownerKey(pod)], local: s.local}
}

// budgetsOf are those that select the pod.
func budgetsOf(s *subject) []*policyv1.PodDisruptionBudget {
	var all []*policyv1.PodDisruptionBudget
	for i := range s.budgets {
		selector, err := metav1.LabelSelectorAsSelector(s.budgets[i].Spec.Selector)
		if err == nil && selector.Matches(labels.Set(s.Labels)) {
			all = append(all, &s.budgets[i])
		}
	}
	return all
}

// never says why no eviction of the pod will be allowed, as long as replicas and budgets are as they are.
func never(s *subject) string {
	budgets := budgetsOf(s)
	if len(budgets) > 1 {
		// The eviction subresource does not support it (kubernetes pkg/registry/core/pod/storage/eviction.go).
		return fmt.Sprintf("%d PodDisruptionBudgets select the pod, and the API evicts none such: %s, %s", len(budgets), budgets[0].Name, budgets[1].Name)
	}
	for _, budget := range budgets {
		always := budget.Spec.UnhealthyPodEvictionPolicy != nil && *budget.Spec.UnhealthyPodEvictionPolicy == policyv1.AlwaysAllow && !isReady(s.Pod)
		status := budget.Status
		if !always && status.ObservedGeneration == budget.Generation && status.DisruptionsAllowed <= 0 && status.ExpectedPods > 0 && status.DesiredHealthy >= status.ExpectedPods {
			return fmt.Sprintf("PodDisruptionBudget %s: needs %d of %d pods", budget.Name, status.DesiredHealthy, status.ExpectedPods)
		}
	}
	return ""
}

func exhaustedBudget(s *subject) string {
	for _, budget := range budgetsOf(s) {
		if budget.Status.DisruptionsAllowed <= 0 {
			return fmt.Sprintf("PodDisruptionBudget %s: %d healthy, needs %d", budget.Name, budget.Status.CurrentHealthy, budget.Status.DesiredHealthy)
		}
	}
	return ""
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// localClaims says of the claims whose volume is on one node what ties it.
func localClaims(in Input) map[string]string {
	tied := map[string]string{}
	for i := range in.Volumes {
		v := &in.Volumes[i]
		switch {
		case v.Spec.Local != nil:
			tied[v.Name] = "local " + v.Spec.Local.Path
		case v.Spec.HostPath != nil:
			tied[v.Name] = "hostPath " + v.Spec.HostPath.Path
		case v.Spec.NodeAffinity != nil && v.Spec.NodeAffinity.Required != nil && namesHost(v.Spec.NodeAffinity.Required.NodeSelectorTerms):
			tied[v.Name] = "tied to its node"
		}
	}
	local := map[string]string{}
	for i := range in.Claims {
		c := &in.Claims[i]
		if what := tied[c.Spec.VolumeName]; what != "" {
			local[c.Namespace+"/"+c.Name] = what
		}
	}
	return local
}

// namesHost tells an affinity to a host from one to a zone.
func namesHost(terms []corev1.NodeSelectorTerm) bool {
	for _, term := range terms {
		for _, e := range term.MatchExpressions {
			if strings.HasSuffix(e.Key, "hostname") || strings.HasSuffix(e.Key, "/node") {
				return true
			}
		}
		if len(term.MatchFields) > 0 { // metadata.name alone can be asked for
			return true
		}
	}
	return false
}

func localVolume(s *subject) string {
	for i := range s.Spec.Volumes {
		if claim := s.Spec.Volumes[i].PersistentVolumeClaim; claim != nil {
			if what := s.local[s.Namespace+"/"+claim.ClaimName]; what != "" {
				return "claim " + claim.ClaimName + ": " + what
			}
		}
	}
	return ""
}
