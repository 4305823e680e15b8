package assess

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
)

var nodeChecks = []Check{
	{
		ID: "node-not-switchable", Category: Node, Severity: Blocker, Title: "The node cannot be switched in place",
		Why:    "its platform or its distribution decides on the runtime, and a change on the host would not last",
		Remedy: "do what the finding says, mostly replace the node",
		node:   func(node *corev1.Node) string { return inventory.Refusal(node).Text },
	},
	{
		ID: "node-not-ready", Category: Node, Severity: Blocker, Title: "The node is not Ready",
		Why:    "only a node that works can be proven to work afterwards",
		Remedy: "repair the node first",
		node: func(node *corev1.Node) string {
			if row := inventory.FromNode(node); row.Ready != corev1.ConditionTrue {
				return fmt.Sprintf("the condition Ready is %s", row.Ready)
			}
			return ""
		},
	},
}

var drainChecks = []Check{
	{
		ID: "drain-budget", Category: Drain, Severity: Warning, Title: "A PodDisruptionBudget allows no disruption now",
		Why:    "the drain waits until the budget allows the eviction, or its timeout ends it",
		Remedy: "add replicas, or relax the budget for the time of the switch",
		pod:    drained(exhaustedBudget),
	},
	{
		ID: "drain-bare-pod", Category: Drain, Severity: Blocker, Title: "No controller would create the pod anew",
		Why:    "a drain refuses to remove such a pod unless it is forced, and the pod is then gone for good",
		Remedy: "delete the pod, give it a controller, or give `--force` to the switch",
		pod: drained(func(s *subject) string {
			if metav1.GetControllerOf(s.Pod) != nil {
				return ""
			}
			return "the pod has no controller"
		}),
	},
	{
		ID: "drain-empty-dir", Category: Drain, Severity: Blocker, Title: "The pod has an emptyDir volume",
		Why:    "what is in it is lost when the pod is evicted, and a switch refuses that unless told otherwise",
		Remedy: "see that the data can be lost, then give `--delete-emptydir-data` to the switch",
		pod: drained(volume(func(v *corev1.Volume) string {
			if v.EmptyDir == nil {
				return ""
			}
			return "volume " + v.Name
		})),
	},
}

var workloadChecks = []Check{
	{
		ID: "workload-docker-socket", Category: Workloads, Severity: Warning, Title: "The pod mounts the socket of Docker or of its shim",
		Why:    "Kubernetes' containers are not to be found behind that socket after the switch",
		Remedy: "use the CRI socket /run/containerd/containerd.sock, the API, or a build tool without a daemon",
		pod:    hostPath("/run/docker.sock", "/run/dockershim.sock", "/run/cri-dockerd.sock"),
	},
	{
		ID: "workload-docker-data", Category: Workloads, Severity: Warning, Title: "The pod mounts Docker's data",
		Why:    "containers, their logs and their layers are elsewhere after the switch; log agents that read here see nothing new",
		Remedy: "read logs from /var/log/pods in the CRI format, and take statistics from the kubelet",
		pod: volume(func(v *corev1.Volume) string {
			if v.HostPath == nil {
				return ""
			}
			if p := path.Clean(v.HostPath.Path); p == "/var/lib/docker" || strings.HasPrefix(p, "/var/lib/docker/") {
				return p
			}
			return ""
		}),
	},
	{
		ID: "workload-docker-parent", Category: Workloads, Severity: Info, Title: "The pod mounts a directory that holds Docker's socket or data",
		Why:    "it can reach Docker there, though most such pods, like node-exporter, do not",
		Remedy: "look whether the program uses Docker",
		pod:    hostPath("/", "/run", "/var", "/var/lib"),
	},
	{
		ID: "workload-docker-host", Category: Workloads, Severity: Warning, Title: "DOCKER_HOST points to the node's Docker",
		Why:    "Kubernetes' containers are not to be found there after the switch",
		Remedy: "use the API, or a Docker daemon of the pod's own",
		pod: container(func(c *corev1.Container) string {
			for _, env := range c.Env {
				if env.Name == "DOCKER_HOST" && strings.HasPrefix(env.Value, "unix://") {
					return "container " + c.Name + ": " + env.Value
				}
			}
			return ""
		}),
	},
	{
		ID: "workload-docker-in-docker", Category: Workloads, Severity: Info, Title: "The pod runs a Docker daemon of its own",
		Why:    "it goes on to work under containerd, but its storage driver meets another file system below",
		Remedy: "try it on the first node that is switched",
		pod: container(func(c *corev1.Container) string {
			privileged := c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
			daemon := slices.ContainsFunc(slices.Concat(c.Command, c.Args), func(arg string) bool { return path.Base(arg) == "dockerd" })
			if privileged && (daemon || isDind(c.Image)) {
				return "container " + c.Name
			}
			return ""
		}),
	},
	{
		ID: "workload-gpu-default-runtime", Category: Workloads, Severity: Warning, Title: "A GPU pod relies on the default runtime",
		Why:    "without a runtimeClassName it sees a GPU only if containerd's default runtime is nvidia's, as Docker's was",
		Remedy: "set runtimeClassName, or see that the default runtime is carried over",
		pod: container(func(c *corev1.Container) string {
			if _, ok := c.Resources.Limits["nvidia.com/gpu"]; ok {
				return "container " + c.Name
			}
			return ""
		}, func(s *subject) bool { return s.Spec.RuntimeClassName == nil }),
	},
}

// isDind knows docker:dind, docker:27-dind and docker:27-dind-rootless, from any registry.
func isDind(image string) bool {
	name, tag, _ := strings.Cut(path.Base(image), ":")
	tag, _, _ = strings.Cut(tag, "@")
	return name == "docker" && slices.Contains(strings.Split(tag, "-"), "dind")
}

// drained restricts a rule to pods that a drain removes: neither static pods nor those of DaemonSets.
func drained(rule func(*subject) string) func(*subject) string {
	return func(s *subject) string {
		owner := metav1.GetControllerOf(s.Pod)
		if _, static := s.Annotations[corev1.MirrorPodAnnotationKey]; static || owner != nil && owner.Kind == "DaemonSet" {
			return ""
		}
		return rule(s)
	}
}

func exhaustedBudget(s *subject) string {
	for i := range s.budgets {
		budget := &s.budgets[i]
		selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector)
		if err == nil && budget.Status.DisruptionsAllowed <= 0 && selector.Matches(labels.Set(s.Labels)) {
			return fmt.Sprintf("PodDisruptionBudget %s: %d healthy, needs %d", budget.Name, budget.Status.CurrentHealthy, budget.Status.DesiredHealthy)
		}
	}
	return ""
}

func volume(rule func(*corev1.Volume) string) func(*subject) string {
	return func(s *subject) string {
		for i := range s.Spec.Volumes {
			if detail := rule(&s.Spec.Volumes[i]); detail != "" {
				return detail
			}
		}
		return ""
	}
}

// hostPath looks for exactly these paths; /var/run is /run.
func hostPath(paths ...string) func(*subject) string {
	return volume(func(v *corev1.Volume) string {
		if v.HostPath == nil {
			return ""
		}
		p := path.Clean("/" + v.HostPath.Path)
		if rest, ok := strings.CutPrefix(p, "/var/run"); ok && (rest == "" || rest[0] == '/') {
			p = "/run" + rest
		}
		if slices.Contains(paths, p) {
			return v.HostPath.Path
		}
		return ""
	})
}

func container(rule func(*corev1.Container) string, only ...func(*subject) bool) func(*subject) string {
	return func(s *subject) string {
		for _, applies := range only {
			if !applies(s) {
				return ""
			}
		}
		for _, list := range [][]corev1.Container{s.Spec.InitContainers, s.Spec.Containers} {
			for i := range list {
				if detail := rule(&list[i]); detail != "" {
					return detail
				}
			}
		}
		return ""
	}
}
