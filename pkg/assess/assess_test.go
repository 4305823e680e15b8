package assess

import (
	"flag"
	"os"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var update = flag.Bool("update", false, "write docs/checks.md anew")

func dockerNode(name string, change ...func(*corev1.Node)) corev1.Node {
	node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	node.Status.NodeInfo.ContainerRuntimeVersion = "docker://20.10.24"
	node.Status.NodeInfo.KubeletVersion = "v1.23.17"
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, c := range change {
		c(&node)
	}
	return node
}

func ownedPod(kind, owner string, change func(*corev1.Pod)) corev1.Pod {
	yes := true
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: owner + "-x", Namespace: "ns", Labels: map[string]string{"app": owner}}}
	pod.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: owner, Controller: &yes}}
	pod.Spec.NodeName = "n"
	pod.Spec.Containers = []corev1.Container{{Name: "c", Image: "example.com/app:1"}}
	if change != nil {
		change(&pod)
	}
	return pod
}

func mount(path string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}}})
	}
}

func ids(findings []Finding) []string {
	var all []string
	for _, f := range findings {
		all = append(all, f.Check)
	}
	return all
}

func emptyDir(p *corev1.Pod) {
	p.Spec.Volumes = []corev1.Volume{{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
}

func dind(p *corev1.Pod) {
	yes := true
	p.Spec.Containers[0].Image = "docker:27-dind"
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
}

func gpu(p *corev1.Pod) {
	p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"nvidia.com/gpu": resource.MustParse("1")}
}

func TestPodChecks(t *testing.T) {
	nvidia := "nvidia"
	for _, test := range []struct {
		name string
		pod  corev1.Pod
		want []string
	}{
		{"socket", ownedPod("DaemonSet", "d", mount("/var/run/docker.sock")), []string{"workload-docker-socket"}},
		{"shim", ownedPod("DaemonSet", "d", mount("/run/cri-dockerd.sock")), []string{"workload-docker-socket"}},
		{"logs", ownedPod("DaemonSet", "d", mount("/var/lib/docker/containers/")), []string{"workload-docker-data"}},
		{"node-exporter", ownedPod("DaemonSet", "d", mount("/")), []string{"workload-docker-parent"}},
		{"docker host", ownedPod("DaemonSet", "d", func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "DOCKER_HOST", Value: "unix:///run/docker.sock"}}
		}), []string{"workload-docker-host"}},
		{"docker host of its own", ownedPod("DaemonSet", "d", func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "DOCKER_HOST", Value: "tcp://localhost:2375"}}
		}), nil},
		{"dind", ownedPod("ReplicaSet", "r", dind), []string{"workload-docker-in-docker"}},
		{"gpu", ownedPod("ReplicaSet", "r", gpu), []string{"workload-gpu-default-runtime"}},
		{"gpu with a class", ownedPod("ReplicaSet", "r", func(p *corev1.Pod) { gpu(p); p.Spec.RuntimeClassName = &nvidia }), nil},
		{"bare", ownedPod("", "b", func(p *corev1.Pod) { p.OwnerReferences = nil }), []string{"drain-bare-pod"}},
		{"static", ownedPod("Node", "n", func(p *corev1.Pod) {
			p.OwnerReferences, p.Annotations = nil, map[string]string{corev1.MirrorPodAnnotationKey: "x"}
		}), nil},
		{"emptyDir", ownedPod("ReplicaSet", "r", emptyDir), []string{"drain-empty-dir"}},
		{"emptyDir that stays", ownedPod("DaemonSet", "d", emptyDir), nil},
		{"budget", ownedPod("ReplicaSet", "tight", nil), []string{"drain-budget"}},
		{"finished", ownedPod("Job", "j", func(p *corev1.Pod) { emptyDir(p); p.Status.Phase = corev1.PodSucceeded }), nil},
		{"elsewhere", ownedPod("DaemonSet", "d", func(p *corev1.Pod) { mount("/run/docker.sock")(p); p.Spec.NodeName = "done" }), nil},
		// A usual cluster's own pods.
		{"calico", ownedPod("DaemonSet", "calico", func(p *corev1.Pod) {
			for _, path := range []string{"/lib/modules", "/var/run/calico", "/var/lib/calico", "/opt/cni/bin", "/etc/cni/net.d", "/run/xtables.lock", "/sys/fs/", "/proc"} {
				mount(path)(p)
			}
		}), nil},
		{"flannel", ownedPod("DaemonSet", "flannel", mount("/run/flannel")), nil},
		{"cilium", ownedPod("DaemonSet", "cilium", mount("/var/run/cilium")), nil},
		{"coredns", ownedPod("ReplicaSet", "coredns", nil), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			budget := policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "tight", Namespace: "ns"}}
			budget.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "tight"}}
			done := dockerNode("done", func(n *corev1.Node) { n.Status.NodeInfo.ContainerRuntimeVersion = "containerd://1.7.24" })
			in := Input{Nodes: []corev1.Node{dockerNode("n"), done}, Pods: []corev1.Pod{test.pod}, Budgets: []policyv1.PodDisruptionBudget{budget}}
			if got := ids(Run(in)); !slices.Equal(got, test.want) {
				t.Errorf("found %v, want %v", got, test.want)
			}
			in.Ignore = test.want
			if got := Run(in); len(got) != 0 {
				t.Errorf("found %v although ignored", got)
			}
		})
	}
}

func TestNodeChecks(t *testing.T) {
	windows := dockerNode("win", func(n *corev1.Node) { n.Status.NodeInfo.OperatingSystem = "windows" })
	down := dockerNode("down", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown })
	got := ids(Run(Input{Nodes: []corev1.Node{windows, down, dockerNode("n")}}))
	if want := []string{"node-not-switchable", "node-not-ready"}; !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

func TestOwner(t *testing.T) {
	hash := func(p *corev1.Pod) { p.Labels["pod-template-hash"] = "5d4f" }
	for want, pod := range map[string]corev1.Pod{
		"Deployment ns/web":      ownedPod("ReplicaSet", "web-5d4f", hash),
		"ReplicaSet ns/web-5d4f": ownedPod("ReplicaSet", "web-5d4f", nil),
		"StatefulSet ns/db":      ownedPod("StatefulSet", "db", nil),
	} {
		if got := Owner(&pod); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestDocs(t *testing.T) {
	const file = "../../docs/checks.md"
	if *update {
		if err := os.WriteFile(file, []byte(Markdown()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != Markdown() {
		t.Errorf("%s differs from the code, or cannot be read (%v): go test ./pkg/assess -update", file, err)
	}
}
