package assess

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

func budgetFor(app string, change func(*policyv1.PodDisruptionBudget)) policyv1.PodDisruptionBudget {
	b := policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: app, Namespace: "ns", Generation: 2}}
	b.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	b.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 2, ExpectedPods: 3, DesiredHealthy: 3, CurrentHealthy: 3}
	change(&b)
	return b
}

func TestBudgets(t *testing.T) {
	same := func(*policyv1.PodDisruptionBudget) {}
	always := policyv1.AlwaysAllow
	for _, test := range []struct {
		name    string
		budgets []policyv1.PodDisruptionBudget
		ready   bool
		flags   Flags
		want    string
		of      Severity
	}{
		{"all have to be healthy", []policyv1.PodDisruptionBudget{budgetFor("a", same)}, true, Flags{}, "drain-budget-never", Blocker},
		{"deleted past it", []policyv1.PodDisruptionBudget{budgetFor("a", same)}, true, Flags{DisableEviction: true}, "drain-budget-never", Info},
		{"one may go", []policyv1.PodDisruptionBudget{budgetFor("a", func(b *policyv1.PodDisruptionBudget) { b.Status.DesiredHealthy, b.Status.DisruptionsAllowed = 2, 1 })}, true, Flags{}, "", ""},
		{"none may go now", []policyv1.PodDisruptionBudget{budgetFor("a", func(b *policyv1.PodDisruptionBudget) { b.Status.DesiredHealthy, b.Status.CurrentHealthy = 2, 2 })}, true, Flags{}, "drain-budget", Warning},
		{"not looked at yet", []policyv1.PodDisruptionBudget{budgetFor("a", func(b *policyv1.PodDisruptionBudget) { b.Generation = 3 })}, true, Flags{}, "drain-budget", Warning},
		{"an ill pod may go", []policyv1.PodDisruptionBudget{budgetFor("a", func(b *policyv1.PodDisruptionBudget) { b.Spec.UnhealthyPodEvictionPolicy = &always })}, false, Flags{}, "drain-budget", Warning},
		{"a well pod may not", []policyv1.PodDisruptionBudget{budgetFor("a", func(b *policyv1.PodDisruptionBudget) { b.Spec.UnhealthyPodEvictionPolicy = &always })}, true, Flags{}, "drain-budget-never", Blocker},
		{"two", []policyv1.PodDisruptionBudget{
			budgetFor("a", func(b *policyv1.PodDisruptionBudget) { b.Status.DisruptionsAllowed = 1 }),
			budgetFor("a", func(b *policyv1.PodDisruptionBudget) { b.Name, b.Status.DisruptionsAllowed = "b", 1 }),
		}, true, Flags{}, "drain-budget-never", Blocker},
		{"another's", []policyv1.PodDisruptionBudget{budgetFor("other", same)}, true, Flags{}, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := ownedPod("ReplicaSet", "a", func(p *corev1.Pod) {
				if test.ready {
					p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
				}
			})
			in := Input{Nodes: []corev1.Node{dockerNode("n")}, Pods: []corev1.Pod{pod}, Budgets: test.budgets, Flags: test.flags}
			got := Run(in)
			if test.want == "" && len(got) != 0 || test.want != "" && (len(got) != 1 || got[0].Check != test.want || got[0].Severity != test.of) {
				t.Errorf("found %+v", got)
			}
			in.Evicted = labels.SelectorFromSet(labels.Set{"app": "none"})
			if got := Run(in); len(got) != 0 {
				t.Errorf("found %+v for a pod that is not drained", got)
			}
		})
	}
}

func claimed(claim string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "d", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}
	}
}

func TestLocalVolumes(t *testing.T) {
	term := func(key string) corev1.PersistentVolumeSpec {
		return corev1.PersistentVolumeSpec{NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key}}}},
		}}}
	}
	local, hostPath := corev1.PersistentVolumeSpec{}, corev1.PersistentVolumeSpec{}
	local.Local = &corev1.LocalVolumeSource{Path: "/disk"}
	hostPath.HostPath = &corev1.HostPathVolumeSource{Path: "/data"}
	in := Input{Nodes: []corev1.Node{dockerNode("n")}}
	for name, spec := range map[string]corev1.PersistentVolumeSpec{
		"local": local, "host": hostPath, "csi-node": term("topology.example.csi/node"), "hostname": term(corev1.LabelHostname),
		"zone": term(corev1.LabelTopologyZone), "network": {},
	} {
		in.Volumes = append(in.Volumes, corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}, Spec: spec})
		in.Claims = append(in.Claims, corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-" + name}})
		in.Pods = append(in.Pods, ownedPod("StatefulSet", name, claimed(name)))
	}
	var got []string
	for _, f := range Run(in) {
		got = append(got, f.Check+" "+f.Name+": "+f.Detail)
	}
	want := []string{
		"drain-local-volume csi-node: claim csi-node: tied to its node", "drain-local-volume host: claim host: hostPath /data",
		"drain-local-volume hostname: claim hostname: tied to its node", "drain-local-volume local: claim local: local /disk",
	}
	if !slices.Equal(got, want) {
		t.Errorf("found %q", got)
	}
}

// TestSingleReplica: with all pods known, and only then, an owner's only pod is reported.
func TestSingleReplica(t *testing.T) {
	on := func(node string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = node } }
	in := Input{Nodes: []corev1.Node{dockerNode("n")}, Pods: []corev1.Pod{
		ownedPod("StatefulSet", "one", nil), ownedPod("ReplicaSet", "two", nil), ownedPod("ReplicaSet", "two", on("elsewhere")),
		ownedPod("Job", "job", nil), ownedPod("DaemonSet", "daemon", nil),
		ownedPod("ReplicaSet", "was-two", nil), ownedPod("ReplicaSet", "was-two", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }),
	}}
	if got := Run(in); len(got) != 0 {
		t.Errorf("found %+v without all pods", got)
	}
	in.Everything = true
	var got []string
	for _, f := range Run(in) {
		got = append(got, f.Check+" "+f.Name)
	}
	if want := []string{"drain-single-replica was-two", "drain-single-replica one"}; !slices.Equal(got, want) {
		t.Errorf("found %q", got)
	}
}

func sized(name string, cpu, memory, pods string, change ...func(*corev1.Node)) corev1.Node {
	return dockerNode(name, append([]func(*corev1.Node){func(n *corev1.Node) {
		n.Status.Allocatable = corev1.ResourceList{"cpu": resource.MustParse(cpu), "memory": resource.MustParse(memory), "pods": resource.MustParse(pods)}
	}}, change...)...)
}

func requesting(node, cpu, memory string) corev1.Pod {
	return ownedPod("DaemonSet-not", "x", func(p *corev1.Pod) {
		p.Spec.NodeName = node
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse(cpu), "memory": resource.MustParse(memory)}
	})
}

func TestRoom(t *testing.T) {
	tainted := func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Effect: corev1.TaintEffectNoSchedule}} }
	cordoned := func(n *corev1.Node) { n.Spec.Unschedulable = true }
	down := func(n *corev1.Node) { n.Status.Conditions = nil }
	pinned := requesting("n", "9", "1Mi")
	pinned.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "n"}
	for _, test := range []struct {
		name  string
		nodes []corev1.Node
		pods  []corev1.Pod
		want  string
	}{
		{"enough", []corev1.Node{sized("m", "2", "4Gi", "10")}, []corev1.Pod{requesting("n", "1", "1Gi"), requesting("m", "1", "1Gi")}, ""},
		{"too little", []corev1.Node{sized("m", "2", "4Gi", "10")}, []corev1.Pod{requesting("n", "1500m", "4Gi"), requesting("m", "1", "1Gi")}, "the pods request more than the other nodes have: CPU 1500m of 1 free, memory 4096 Mi of 3072 Mi free"},
		{"too many", []corev1.Node{sized("m", "2", "4Gi", "1")}, []corev1.Pod{requesting("n", "0", "0"), requesting("n", "0", "0")}, "the pods request more than the other nodes have: pods 2 of 1 free"},
		{"full ones count for nothing", []corev1.Node{sized("m", "1", "4Gi", "10"), sized("k", "1", "4Gi", "10")}, []corev1.Pod{requesting("n", "1", "0"), requesting("m", "3", "0")}, ""},
		{"nowhere", []corev1.Node{sized("a", "9", "9Gi", "9", tainted), sized("b", "9", "9Gi", "9", cordoned), sized("c", "9", "9Gi", "9", down)}, []corev1.Pod{requesting("n", "1", "0")}, "the pods request more than the other nodes have: CPU 1 of 0 free, pods 1 of 0 free"},
		{"stays anyway", nil, []corev1.Pod{pinned}, ""},
	} {
		node := sized("n", "4", "8Gi", "20")
		in := Input{Nodes: []corev1.Node{node}, AllNodes: append(test.nodes, node), Pods: test.pods, Everything: true, Ignore: []string{"drain-single-replica"}}
		got := ""
		for _, f := range Run(in) {
			got += f.Detail
		}
		if got != test.want {
			t.Errorf("%s: %q", test.name, got)
		}
		in.Everything = false
		if got := Run(in); len(got) != 0 {
			t.Errorf("%s: found %+v without all pods", test.name, got)
		}
	}
}

// TestRequests is the scheduler's count.
func TestRequests(t *testing.T) {
	container := func(cpu string, sidecar bool) corev1.Container {
		c := corev1.Container{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse(cpu)}}}
		if sidecar {
			always := corev1.ContainerRestartPolicyAlways
			c.RestartPolicy = &always
		}
		return c
	}
	for name, test := range map[string]struct {
		init, main []corev1.Container
		overhead   string
		want       int64
	}{
		"containers":      {nil, []corev1.Container{container("1", false), container("2", false)}, "0", 3000},
		"init is larger":  {[]corev1.Container{container("5", false), container("1", false)}, []corev1.Container{container("2", false)}, "0", 5000},
		"sidecar":         {[]corev1.Container{container("1", true), container("3", false)}, []corev1.Container{container("2", false)}, "0", 4000},
		"sidecar remains": {[]corev1.Container{container("1", false), container("2", true)}, []corev1.Container{container("2", false)}, "500m", 4500},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{InitContainers: test.init, Containers: test.main, Overhead: corev1.ResourceList{"cpu": resource.MustParse(test.overhead)}}}
		if got := requests(pod); got.cpu != test.want || got.pods != 1 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestTemplates: what is not a pod yet is reported for no node, by the checks of workloads alone.
func TestTemplates(t *testing.T) {
	pod := ownedPod("", "x", mount("/var/run/docker.sock"))
	emptyDir := corev1.Volume{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
	pod.Spec.Volumes = append(pod.Spec.Volumes, emptyDir)
	got := Run(Input{Nodes: []corev1.Node{dockerNode("n")}, Templates: []Template{{"CronJob", "ns", "nightly", pod.Spec}}})
	want := []Finding{{Check: "workload-docker-socket", Category: Workloads, Severity: Warning, Kind: "CronJob", Namespace: "ns", Name: "nightly", Detail: "/var/run/docker.sock"}}
	if !slices.Equal(got, want) {
		t.Errorf("found %+v", got)
	}
}
