package assess

import (
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

var update = flag.Bool("update", false, "rewrite docs/checks.md")

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
	pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: owner, Controller: &yes}}
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
			mount("/run/docker.sock")(p)
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/var/run/docker.sock"}}
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "DOCKER_HOST", Value: "unix:///run/docker.sock"}}
		}), []string{"workload-docker-socket", "workload-docker-host"}},
		{"docker host by address", ownedPod("DaemonSet", "d", func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{
				{Name: "HOST", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.hostIP"}}},
				{Name: "DOCKER_HOST", Value: "tcp://$(HOST):2375"},
			}
		}), []string{"workload-docker-host"}},
		{"docker host in a shared volume", ownedPod("DaemonSet", "d", func(p *corev1.Pod) {
			emptyDir(p)
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "tmp", MountPath: "/var/run"}}
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "DOCKER_HOST", Value: "unix:///var/run/docker.sock"}}
		}), nil},
		{"docker host of its own", ownedPod("DaemonSet", "d", func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "DOCKER_HOST", Value: "tcp://localhost:2375"}}
		}), nil},
		{"dind", ownedPod("ReplicaSet", "r", dind), []string{"workload-docker-in-docker"}},
		{"gpu", ownedPod("ReplicaSet", "r", gpu), []string{"workload-gpu-default-runtime"}},
		{"gpu with a class", ownedPod("ReplicaSet", "r", func(p *corev1.Pod) { gpu(p); p.Spec.RuntimeClassName = &nvidia }), nil},
		{"bare", ownedPod("", "b", func(p *corev1.Pod) { p.OwnerReferences = nil }), []string{"drain-bare-pod"}},
		{"static", ownedPod("Node", "n", func(p *corev1.Pod) {
			p.OwnerReferences, p.Annotations = nil, map[string]string{corev1.MirrorPodAnnotationKey: "x"}
		}), []string{"workload-static-pod"}},
		{"digest", ownedPod("DaemonSet", "d", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "r.example/app:1@sha256:0123" }), []string{"workload-image-digest"}},
		{"log agent", ownedPod("DaemonSet", "d", func(p *corev1.Pod) {
			p.Spec.Containers[0].Image = "cr.fluentbit.io/fluent/fluent-bit:2.2"
			mount("/var/log")(p)
		}), []string{"workload-log-agent"}},
		{"log agent that gets logs by network", ownedPod("ReplicaSet", "r", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "fluent/fluentd:v1.16" }), nil},
		{"log agent that knows the formats", ownedPod("DaemonSet", "d", func(p *corev1.Pod) {
			p.Spec.Containers[0].Image = "grafana/promtail:2.9.0"
			mount("/var/log")(p)
		}), nil},
		{"emptyDir", ownedPod("ReplicaSet", "r", emptyDir), []string{"drain-empty-dir"}},
		{"emptyDir that stays", ownedPod("DaemonSet", "d", emptyDir), nil},
		{"emptyDir of another kind of DaemonSet", ownedPod("DaemonSet", "d", func(p *corev1.Pod) {
			emptyDir(p)
			p.OwnerReferences[0].APIVersion = "apps.kruise.io/v1alpha1"
		}), []string{"drain-empty-dir"}},
		{"the switch's own", ownedPod("", "b", func(p *corev1.Pod) { p.OwnerReferences, p.Labels = nil, map[string]string{"own": "1"} }), nil},
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
			in := Input{Nodes: []corev1.Node{dockerNode("n"), done}, Pods: []corev1.Pod{test.pod}, Budgets: []policyv1.PodDisruptionBudget{budget}, Keep: map[string]string{"own": "1"}}
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
	phase := func(phase nodestate.State) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Annotations = map[string]string{nodestate.AnnotationPhase: string(phase)} }
	}
	broken := dockerNode("stuck", phase(nodestate.StateBroken))
	midway := dockerNode("midway", phase(nodestate.StateCutover), func(n *corev1.Node) { n.Status.Conditions = nil })
	got := ids(Run(Input{Nodes: []corev1.Node{windows, down, broken, midway, dockerNode("n")}}))
	if want := []string{"node-not-switchable", "node-not-ready", "node-unfinished"}; !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

func TestOwner(t *testing.T) {
	hash := func(p *corev1.Pod) { p.Labels["pod-template-hash"] = "5d4f" }
	born := func(minute int64) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.CreationTimestamp = metav1.Unix(minute*60, 0) }
	}
	static := func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }
	for want, pod := range map[string]corev1.Pod{
		"Deployment web":      ownedPod("ReplicaSet", "web-5d4f", hash),
		"ReplicaSet web-5d4f": ownedPod("ReplicaSet", "web-5d4f", nil),
		"StatefulSet db":      ownedPod("StatefulSet", "db", nil),
		"Pod n-x":             ownedPod("Node", "n", static),
		"CronJob nightly":     ownedPod("Job", "nightly-28493480", born(28493481)),
		"Job x-28493480":      ownedPod("Job", "x-28493480", born(28000000)),
		"Job x-1":             ownedPod("Job", "x-1", born(28493481)),
		"Job load":            ownedPod("Job", "load", born(28493481)),
	} {
		if kind, name := Owner(&pod); kind+" "+name != want {
			t.Errorf("got %s %s, want %s", kind, name, want)
		}
	}
}

// TestFlags: what a flag of the switch accepts is no blocker any more, but is still said.
func TestFlags(t *testing.T) {
	pod := ownedPod("", "b", func(p *corev1.Pod) { emptyDir(p); p.OwnerReferences = nil })
	for _, test := range []struct {
		flags                Flags
		only, bare, emptyDir Severity
	}{
		{Flags{}, Blocker, Blocker, Blocker},
		{Flags{Force: true}, Info, Info, Blocker},
		{Flags{DeleteEmptyDirData: true}, Blocker, Blocker, Info},
		{Flags{Force: true, DeleteEmptyDirData: true}, Info, Info, Info},
	} {
		got := map[string]Severity{}
		for _, finding := range Run(Input{Nodes: []corev1.Node{dockerNode("n")}, Pods: []corev1.Pod{pod}, Alone: true, Flags: test.flags}) {
			got[finding.Check] = finding.Severity
		}
		want := map[string]Severity{"node-only-one": test.only, "drain-bare-pod": test.bare, "drain-empty-dir": test.emptyDir}
		if !maps.Equal(got, want) {
			t.Errorf("%+v: %v, want %v", test.flags, got, want)
		}
	}
	for _, check := range Checks() {
		if check.accepted != nil && !strings.Contains(check.Remedy, "`--") {
			t.Errorf("%s does not name the flag that cures it", check.ID)
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

// TestCleanCluster: what every cluster runs gives no alarm but that of metrics-server's emptyDir, which a drain does refuse.
func TestCleanCluster(t *testing.T) {
	file, err := os.Open("testdata/clean-cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	in := Input{Nodes: []corev1.Node{dockerNode("n")}}
	for decoder := yaml.NewYAMLToJSONDecoder(file); ; {
		var raw runtime.RawExtension
		if err := decoder.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw.Raw, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		switch object := object.(type) {
		case *corev1.Pod:
			in.Pods = append(in.Pods, *object)
		case *policyv1.PodDisruptionBudget:
			in.Budgets = append(in.Budgets, *object)
		}
	}
	if len(in.Pods) != 13 || len(in.Budgets) != 1 {
		t.Fatalf("%d pods and %d budgets were read", len(in.Pods), len(in.Budgets))
	}
	metrics := Finding{"drain-empty-dir", Drain, Blocker, "n", "Deployment", "kube-system", "metrics-server", "volume tmp-dir", ""}
	static := func(name string) Finding {
		return Finding{"workload-static-pod", Workloads, Info, "n", "Pod", "kube-system", name, "static pod", ""}
	}
	exporter := Finding{"workload-docker-parent", Workloads, Info, "n", "DaemonSet", "monitoring", "node-exporter", "/", ""}
	if got, want := Run(in), []Finding{metrics, exporter, static("etcd-n"), static("kube-apiserver-n"), static("kube-controller-manager-n"), static("kube-scheduler-n")}; !slices.Equal(got, want) {
		t.Errorf("found %+v, want %+v", got, want)
	}
	in.Flags.DeleteEmptyDirData = true
	metrics.Severity = Info
	if got, want := Run(in), []Finding{metrics, exporter, static("etcd-n"), static("kube-apiserver-n"), static("kube-controller-manager-n"), static("kube-scheduler-n")}; !slices.Equal(got, want) {
		t.Errorf("with the flag found %+v, want %+v", got, want)
	}
}
