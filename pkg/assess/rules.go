package assess

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// checkOnlyNode is about the cluster more than about the node: Run leaves it out unless Input.Alone.
const checkOnlyNode = "node-only-one"

var nodeChecks = []Check{
	{
		ID: "node-not-switchable", Category: Node, Severity: Blocker, fixed: true, Title: "The node cannot be switched in place",
		Why:    "its platform or its distribution decides on the runtime, and a change on the host would not last",
		Remedy: "do what the finding says, mostly replace the node",
		node:   func(node *corev1.Node) string { return inventory.Refusal(node).Text },
	},
	{
		ID: "node-not-ready", Category: Node, Severity: Blocker, fixed: true, Title: "The node is not Ready",
		Why:    "only a node that works can be proven to work afterwards",
		Remedy: "repair the node first",
		node: func(node *corev1.Node) string {
			row := inventory.FromNode(node)
			if row.Ready == corev1.ConditionTrue || row.Switch == nodestate.StateCutover || row.Switch == nodestate.StateVerifying {
				return "" // a switch that was interrupted there is resumed
			}
			return fmt.Sprintf("the condition Ready is %s", cmp.Or(row.Ready, corev1.ConditionUnknown))
		},
	},
	{
		ID: "node-unfinished", Category: Node, Severity: Blocker, fixed: true, Title: "An earlier switch or rollback of the node is not over",
		Why:    "the host is between two runtimes, and what a new switch would find there is not known",
		Remedy: "see what `kubectl runtime status` says on the node, and docs/recovery.md",
		node: func(node *corev1.Node) string {
			if row := inventory.FromNode(node); row.Switch == nodestate.StateBroken || row.Switch == nodestate.StateRollingBack {
				return fmt.Sprintf("the state is %s", row.Switch)
			}
			return ""
		},
	},
	{
		ID: checkOnlyNode, Category: Node, Severity: Blocker, Title: "The node is the only one of the cluster",
		Why:      "its pods have nowhere to go while it is drained, so a switch refuses it unless it is forced",
		Remedy:   "add a node, or give `--force` to the switch",
		flag:     "--force",
		accepted: func(f Flags) bool { return f.Force },
		node:     func(*corev1.Node) string { return "there is no other node" },
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
		pod:    container(dockerHost),
	},
	{
		ID: "workload-docker-in-docker", Category: Workloads, Severity: Info, Title: "The pod runs a Docker daemon of its own",
		Why:    "it still works under containerd, but its storage driver finds another file system below",
		Remedy: "try it on the first node that is switched",
		pod: container(func(_ *subject, c *corev1.Container) string {
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
		pod: container(func(s *subject, c *corev1.Container) string {
			for name := range c.Resources.Limits { // nvidia.com/gpu, nvidia.com/gpu.shared, nvidia.com/mig-1g.5gb
				if s.Spec.RuntimeClassName == nil && strings.HasPrefix(string(name), "nvidia.com/") {
					return "container " + c.Name
				}
			}
			return ""
		}),
	},
	{
		ID: "workload-log-agent", Category: Workloads, Severity: Warning, Title: "A log agent may expect Docker's JSON lines",
		Why:    "containerd writes logs in the CRI format, which a parser for Docker's takes for plain text, or drops",
		Remedy: "set its parser to cri, or to one that knows both, and look at its output after the first node",
		pod:    container(logAgent),
	},
	{
		ID: "workload-image-digest", Category: Workloads, Severity: Info, Title: "The pod names its image by digest",
		Why:    "such an image is found on containerd only under the digest's name, which the switch brings along; with `--images none` it is pulled again",
		Remedy: "nothing",
		pod: container(func(_ *subject, c *corev1.Container) string {
			if strings.Contains(c.Image, "@sha256:") {
				return "container " + c.Name
			}
			return ""
		}),
	},
	{
		ID: "workload-static-pod", Category: Workloads, Severity: Info, Title: "The pod is a file on the node",
		Why:    "no drain moves it: it is away from the stop of the kubelet until it runs on containerd, with an API server or an etcd that may be in it",
		Remedy: "nothing; switch such nodes one at a time, and see that the others' are well",
		pod: func(s *subject) string {
			if isStatic(s.Pod) {
				return "static pod"
			}
			return ""
		},
	},
}

// isDind knows docker:dind, docker:27-dind and docker:27-dind-rootless, from any registry.
func isDind(image string) bool {
	name, tag, _ := strings.Cut(path.Base(image), ":")
	tag, _, _ = strings.Cut(tag, "@")
	return name == "docker" && slices.Contains(strings.Split(tag, "-"), "dind")
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
		if slices.Contains(paths, normalPath(v.HostPath.Path)) {
			return v.HostPath.Path
		}
		return ""
	})
}

// normalPath is a cleaned absolute path, without the link /var/run.
func normalPath(p string) string {
	p = path.Clean("/" + p)
	if rest, ok := strings.CutPrefix(p, "/var/run"); ok && (rest == "" || rest[0] == '/') {
		p = "/run" + rest
	}
	return p
}

func container(rule func(*subject, *corev1.Container) string) func(*subject) string {
	return func(s *subject) string {
		for _, list := range [][]corev1.Container{s.Spec.InitContainers, s.Spec.Containers} {
			for i := range list {
				if detail := rule(s, &list[i]); detail != "" {
					return detail
				}
			}
		}
		return ""
	}
}

// dockerHost finds a DOCKER_HOST that leads to the node: to a socket in what is mounted from the host, or to the host's address.
// A socket that the pod's containers share in a volume of their own is a daemon of the pod's own.
func dockerHost(s *subject, c *corev1.Container) string {
	at := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "DOCKER_HOST" })
	if at < 0 {
		return ""
	}
	value := c.Env[at].Value
	socket, isUnix := strings.CutPrefix(value, "unix://")
	hit := isUnix && fromHost(s, c, normalPath(socket))
	for _, env := range c.Env {
		if env.ValueFrom != nil && env.ValueFrom.FieldRef != nil && env.ValueFrom.FieldRef.FieldPath == "status.hostIP" {
			hit = hit || strings.Contains(value, "$("+env.Name+")")
		}
	}
	if !hit {
		return ""
	}
	return "container " + c.Name + ": " + value
}

// fromHost says whether what a container has at a path is mounted from the host: the innermost mount decides.
func fromHost(s *subject, c *corev1.Container, file string) bool {
	innermost, volumeName := "", ""
	for _, mount := range c.VolumeMounts {
		p := normalPath(mount.MountPath)
		if (p == "/" || file == p || strings.HasPrefix(file, p+"/")) && len(p) >= len(innermost) {
			innermost, volumeName = p, mount.Name
		}
	}
	return slices.ContainsFunc(s.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == volumeName && v.HostPath != nil })
}

// logAgents are programs that read containers' log files by a parser that somebody has set; those that find out the format by
// themselves, such as promtail, vector or Datadog's, are not among them.
var logAgents = []string{"fluentd", "fluent-bit", "fluentbit", "filebeat", "logstash", "td-agent"}

// logAgent finds such a program that has the node's logs, by what its image is called.
func logAgent(s *subject, c *corev1.Container) string {
	name, _, _ := strings.Cut(path.Base(c.Image), "@")
	name, _, _ = strings.Cut(name, ":")
	if !slices.ContainsFunc(logAgents, func(agent string) bool { return strings.Contains(name, agent) }) {
		return ""
	}
	logs := hostPath("/var/log", "/var/log/containers", "/var/log/pods", "/var/lib/docker/containers", "/var/lib/docker", "/var/lib", "/var", "/")(s)
	if logs == "" {
		return ""
	}
	return "container " + c.Name + " reads " + logs
}
