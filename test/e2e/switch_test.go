package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

func TestDockershim(t *testing.T) { testProfile(t, lab.Dockershim) }

func TestCRIDockerd(t *testing.T) { testProfile(t, lab.CRIDockerd) }

// testProfile goes the whole way on one cluster: refusals first, then a cutover that fails, then the switch of every node. The last
// node is one with a history.
func testProfile(t *testing.T, profile string) {
	history := registries()
	c := upWith(t, lab.Options{
		Profile: profile, Nodes: 2, RegistryAuth: true, Overlays: map[string]string{"node-2": history.compose(t, profile)},
	})
	c.deploy(t)
	n := c.wardrobe(t, "node-1").dress(t, "node-2", history)
	files := c.fingerprint(t, "node-1")

	steps := []struct {
		name string
		test func(*testing.T)
	}{
		{"Status", c.testStatus},
		{"BadInput", func(t *testing.T) { c.testBadInput(t, profile) }},
		{"PlanFinds", c.testPlanFinds},
		{"RehearsalFails", c.testRehearsalFails},
		{"CutoverFails", c.testCutoverFails},
		{"Plan", c.testPlan},
		{"Switch", c.testSwitch},
		{"PlanHeld", c.testPlanHeld},
		{"AlreadyOnContainerd", func(t *testing.T) {
			if r := c.switchNode(t, 0, "node-1"); !strings.Contains(r.stdout+r.stderr, "already") {
				t.Errorf("does not say that the node is on containerd already:\n%s%s", r.stdout, r.stderr)
			}
		}},
		{"Rollback", func(t *testing.T) {
			c.rollback(t, "node-1", files)
			c.restartOnDocker(t, "node-1") // for the switch in Crash
		}},
		{"Crash", func(t *testing.T) { c.testCrash(t, profile) }},
		{"CordonedStaysCordoned", c.testCordoned},
		// The way back of such a node is in `make overlays`.
		{"Overlays", func(t *testing.T) { n.holds(t, onContainerd) }},
	}
	for _, step := range steps {
		if !t.Run(step.name, step.test) {
			t.Fatalf("%s failed: the later ones build on it", step.name)
		}
	}
}

// deploy applies the workloads and waits for them.
func (c *cluster) deploy(t *testing.T) {
	t.Helper()
	manifest, err := os.ReadFile("workloads.yaml")
	if err != nil {
		t.Fatal(err)
	}
	stateful, err := os.ReadFile("stateful.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range c.Nodes() {
		manifest = append(manifest, strings.ReplaceAll(string(stateful), "NODE", node)...)
	}
	if c.run(t, "get", "--raw", "/apis/policy/v1").code != 0 { // before Kubernetes 1.21
		manifest = bytes.ReplaceAll(manifest, []byte("policy/v1\n"), []byte("policy/v1beta1\n"))
	}
	path := filepath.Join(t.TempDir(), "workloads.yaml")
	if err := os.WriteFile(path, manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "apply", "-f", path)
	c.waitPods(t)
}

// waitPods waits until every pod is Ready or has completed.
func (c *cluster) waitPods(t *testing.T) {
	t.Helper()
	c.waitPodsWith(t)
}

// waitPodsOn waits for the pods of one node, and for the one that can run nowhere else.
func (c *cluster) waitPodsOn(t *testing.T, node string) {
	t.Helper()
	c.waitPodsWith(t, "--field-selector", "spec.nodeName="+node)
	c.kubectl(t, "-n", "work", "rollout", "status", "statefulset/data-"+node, "--timeout", "2m")
}

func (c *cluster) waitPodsWith(t *testing.T, selection ...string) {
	t.Helper()
	eventually(t, 4*time.Minute, func() string {
		var list struct {
			Items []struct {
				Metadata struct{ Namespace, Name string }
				Spec     struct{ NodeName string }
				Status   struct {
					Phase, PodIP      string
					Conditions        []struct{ Type, Status, Reason, Message string }
					ContainerStatuses json.RawMessage
				}
			}
		}
		if err := json.Unmarshal([]byte(c.kubectl(t, append([]string{"get", "pods", "-A", "-o", "json"}, selection...)...)), &list); err != nil {
			t.Fatal(err)
		}
		var waiting []string
		for _, pod := range list.Items {
			ready := pod.Status.Phase == "Succeeded"
			for _, condition := range pod.Status.Conditions {
				ready = ready || condition.Type == "Ready" && condition.Status == "True"
			}
			if !ready {
				waiting = append(waiting, fmt.Sprintf("%s/%s on %s: %s, address %s, conditions %+v, containers %s", pod.Metadata.Namespace, pod.Metadata.Name,
					pod.Spec.NodeName, pod.Status.Phase, pod.Status.PodIP, pod.Status.Conditions, pod.Status.ContainerStatuses))
			}
		}
		if len(list.Items) == 0 {
			return "no pods"
		}
		return strings.Join(waiting, ", ")
	})
}

func (c *cluster) testStatus(t *testing.T) {
	r := c.runtime(t, 0, "status")
	for _, want := range []string{"NAME", "node-1", "node-2", "docker"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("status does not show %q", want)
		}
	}
	var list struct {
		APIVersion, Kind string
		Items            []struct{ Metadata struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(c.runtime(t, 0, "status", "-o", "json").stdout), &list); err != nil {
		t.Fatalf("status -o json: %v", err)
	}
	if len(list.Items) != 2 || list.Items[0].Metadata.Name != "node-1" {
		t.Errorf("status -o json: %+v", list)
	}
	if out := c.runtime(t, 0, "status", "-o", "name").stdout; out != "node/node-1\nnode/node-2\n" {
		t.Errorf("status -o name: %q", out)
	}
}

// testBadInput of which the pull that fails, which takes a while, is tried on one profile.
func (c *cluster) testBadInput(t *testing.T, profile string) {
	const pullFails = "image that cannot be pulled"
	before := c.podIDs(t, "node-1")
	for _, test := range []struct {
		name string
		code int
		args []string
		want string
	}{
		{"unknown node", 2, []string{"switch", "nowhere", "--yes", "--image", agentImage}, "nowhere"},
		{"selector without a match", 2, []string{"switch", "-l", "no=such", "--yes", "--image", agentImage}, "no=such"},
		{"neither terminal nor --yes", 1, []string{"switch", "node-1", "--image", agentImage}, "--yes"},
		{pullFails, 2, []string{"switch", "node-1", "--yes", "--image", "lab.local/nothing:1"}, "lab.local/nothing:1"},
	} {
		if profile == lab.CRIDockerd && test.name == pullFails {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			started := time.Now()
			r := c.runtime(t, test.code, test.args...)
			if !strings.Contains(r.stderr, test.want) {
				t.Errorf("the error does not name %q:\n%s", test.want, r.stderr)
			}
			if took := time.Since(started); took > time.Minute {
				t.Errorf("took %s", took)
			}
			c.untouched(t, "node-1", before)
		})
	}
}

// podIDs maps each container on a node to its ID and restarts: what an untouched node keeps.
func (c *cluster) podIDs(t *testing.T, node string) string {
	t.Helper()
	return c.kubectl(t, "get", "pods", "-A", "--field-selector", "spec.nodeName="+node, "-o",
		`jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {.status.containerStatuses[*].containerID} {.status.containerStatuses[*].restartCount}{"\n"}{end}`)
}

// untouched checks that a node is on Docker, schedulable, with the pods that it had, and that nothing of a run is left.
func (c *cluster) untouched(t *testing.T, name, pods string) {
	t.Helper()
	c.nothingLeft(t, name)
	n := c.node(t, name)
	if !n.ready() || n.Spec.Unschedulable || !strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, "docker://") {
		t.Errorf("%s: ready %t, unschedulable %t, runtime %s", name, n.ready(), n.Spec.Unschedulable, n.Status.NodeInfo.ContainerRuntimeVersion)
	}
	if now := c.podIDs(t, name); now != pods {
		t.Errorf("%s: pods changed\nbefore:\n%snow:\n%s", name, pods, now)
	}
}

// nothingLeft checks that a node's Jobs, pods and Lease are gone.
func (c *cluster) nothingLeft(t *testing.T, node string) {
	t.Helper()
	selector := labels.SelectorFromSet(nodejob.NodeLabels(node)).String()
	eventually(t, 30*time.Second, func() string {
		return strings.TrimSpace(c.kubectl(t, "-n", nodejob.Namespace, "get", "jobs,pods,leases", "-l", selector, "-o", "name"))
	})
}

func (c *cluster) testRehearsalFails(t *testing.T) {
	// containerd takes the first file of the directory.
	cni := func(conf string) (setup, cleanup string) {
		return `echo '{"cniVersion":"0.4.0","name":"broken","plugins":[` + conf + `]}' > /etc/cni/net.d/00-broken.conflist`, "rm /etc/cni/net.d/00-broken.conflist"
	}
	missing, missingCleanup := cni(`{"type":"no-such-plugin"}`)
	failing, failingCleanup := cni(`{"type":"bridge","bridge":"cni9","ipam":{"type":"host-local","ranges":[[{"subnet":"10.99.0.0/33"}]]}}`)
	registry := c.useRegistry(t, "node-1")
	for _, test := range []struct{ name, setup, cleanup, want string }{
		{"CNI plugin that does not exist", missing, missingCleanup, "no-such-plugin"},
		{"CNI plugin that fails", failing, failingCleanup, "10.99.0.0/33"},
		{
			"a registry whose CA only Docker knows", "mkdir -p /etc/containerd/certs.d/" + registry + " && echo 'server = \"https://" + registry + "\"' > /etc/containerd/certs.d/" + registry + "/hosts.toml",
			"rm -r /etc/containerd/certs.d; rmdir --ignore-fail-on-non-empty /etc/containerd", "registry " + registry + " answers Docker, and does not answer containerd",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.exec(t, "node-1", test.setup)
			defer c.exec(t, "node-1", test.cleanup)
			before := c.podIDs(t, "node-1")
			files := c.fingerprint(t, "node-1")
			cordons := c.watch(t, "get", "node", "node-1", "-w", "-o", `jsonpath={.spec.unschedulable}{"\n"}`)
			r := c.switchNode(t, 2, "node-1")
			if seen := cordons(); slices.Contains(seen, "true") {
				t.Error("the node was cordoned")
			}
			if !strings.Contains(r.stderr, test.want) {
				t.Errorf("the reason is not shown:\n%s", r.stderr)
			}
			c.untouched(t, "node-1", before)
			if d := differences(files, c.fingerprint(t, "node-1")); d != "" {
				t.Errorf("files changed:\n%s", d)
			}
		})
	}
}

// useRegistry has an image of the node's pods come from the registry with a password, too, and returns the registry.
func (c *cluster) useRegistry(t *testing.T, node string) string {
	t.Helper()
	const image = "lab.local/busybox:1"
	if used := c.kubectl(t, "get", "pods", "-A", "--field-selector", "spec.nodeName="+node, "-o", "jsonpath={.items[*].spec.containers[*].image}"); !strings.Contains(used, image) {
		t.Fatalf("no pod of %s uses %s: %s", node, image, used)
	}
	pushed, err := c.PushImage(t.Context(), node, image)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range c.Registries() {
		if r.User != "" {
			c.exec(t, node, "docker login -u "+r.User+" -p "+r.Password+" "+r.Address+" && docker pull -q "+r.Address+"/"+pushed+" && docker logout "+r.Address)
			return r.Address
		}
	}
	t.Fatal("no registry wants a password")
	return ""
}

// fingerprint lists the files that a switch may change, with owner, mode and content, and how units are set. Of /etc it has all but
// what systemd itself writes.
func (c *cluster) fingerprint(t *testing.T, node string) string {
	t.Helper()
	return c.exec(t, node, `cd / && find etc var/lib/kubelet -path var/lib/kubelet/pods -prune -o -path var/lib/kubelet/pki -prune -o \
			\( -path 'etc/*' -o -name '*.env' -o -name '*.yaml' \) ! -path etc/resolv.conf ! -path 'etc/machine-id' -printf '%p %y %u:%g %m %l\n' | sort
		find etc var/lib/kubelet -path var/lib/kubelet/pods -prune -o -path var/lib/kubelet/pki -prune -o \
			-type f \( -path 'etc/*' -o -name '*.env' -o -name '*.yaml' \) ! -path etc/resolv.conf ! -path etc/machine-id -print0 | sort -z | xargs -0 sha256sum
		for u in docker.service docker.socket cri-docker.service cri-docker.socket containerd.service kubelet.service; do
		echo $u $(systemctl is-enabled $u 2>&1) $(systemctl is-active $u); done`)
}

// differences lists the lines of one text that the other has not, at most twenty.
func differences(before, now string) string {
	old, new := strings.Split(before, "\n"), strings.Split(now, "\n")
	var out []string
	for _, line := range old {
		if !slices.Contains(new, line) {
			out = append(out, "- "+line)
		}
	}
	for _, line := range new {
		if !slices.Contains(old, line) {
			out = append(out, "+ "+line)
		}
	}
	return strings.Join(out[:min(len(out), 20)], "\n")
}

func (c *cluster) testCutoverFails(t *testing.T) {
	c.exec(t, "node-1", refuseContainerd)
	defer c.exec(t, "node-1", acceptContainerd)
	files := c.fingerprint(t, "node-1")
	r := c.switchNode(t, 4, "node-1", "--cutover-timeout", "90s")
	if !strings.Contains(r.stderr, "kubelet") {
		t.Errorf("the reason is not shown:\n%s", r.stderr)
	}
	n := c.node(t, "node-1")
	if !n.ready() || n.Spec.Unschedulable || !strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, "docker://") {
		t.Errorf("ready %t, unschedulable %t, runtime %s", n.ready(), n.Spec.Unschedulable, n.Status.NodeInfo.ContainerRuntimeVersion)
	}
	if d := differences(files, c.fingerprint(t, "node-1")); d != "" {
		t.Errorf("files changed:\n%s", d)
	}
	c.waitPods(t)
	c.nothingLeft(t, "node-1")
	c.checkEvidence(t, r.stderr)
}

// checkEvidence checks that a failed switch has named a bundle that tells why, from the API and from the host.
func (c *cluster) checkEvidence(t *testing.T, stderr string) {
	t.Helper()
	_, rest, _ := strings.Cut(stderr, "evidence of why it failed: ")
	name, _, _ := strings.Cut(rest, "\n")
	out, err := exec.Command("tar", "-tzf", filepath.Join(c.dir, name)).CombinedOutput()
	if err != nil {
		t.Fatalf("evidence %q: %v: %s", name, err, out)
	}
	for _, want := range []string{
		"/error.txt", "/progress.txt", "/node.yaml", "/pods.yaml", "/events.txt", "/run/journal.jsonl", "/run/events.jsonl",
		"/units/kubelet.service.log", "/units/containerd.service.log", "/files/index.json", ".before", ".to-be", "/status.txt",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the evidence has no %s:\n%s", want, out)
		}
	}
}

func (c *cluster) testSwitch(t *testing.T) {
	data := c.exec(t, "node-1", "cat /var/lib/lab-data/first")
	images := c.pullOnDocker(t)
	layers := c.exec(t, "node-1", "ls /var/lib/docker/image/overlay2/layerdb/sha256 | wc -l; ls /var/lib/docker/image/overlay2/imagedb/content/sha256 | sort | sha256sum")
	pods := c.watch(t, "-n", "kubectl-runtime", "get", "pods", "-w", "-o", `jsonpath={.metadata.name}={.spec.automountServiceAccountToken}={.spec.volumes[*].projected}{"\n"}`)
	c.exec(t, "node-1", orphan)

	r := c.switchNode(t, 0, "node-1", "--verify-images")
	if !strings.Contains(r.stderr, "Docker lost sight of container orphan ") {
		t.Error("the container that Docker lost sight of is not told of")
	}
	if strings.Contains(r.stderr, "cannot be told") {
		t.Error("the pod that waited for the cutover could not be told")
	}

	for _, registry := range c.Registries() {
		if !strings.Contains(r.stderr, "registry "+registry.Address+" answers containerd") {
			t.Errorf("the switch does not say that registry %s answers containerd:\n%s", registry.Address, r.stderr)
		}
	}
	c.pulledNothing(t, images)
	seen := pods()
	if len(seen) == 0 {
		t.Error("no pod of the run was seen")
	}
	for _, pod := range seen {
		if !strings.HasSuffix(pod, "=false=") {
			t.Errorf("a pod mounts a token: %s", pod)
		}
	}
	c.onContainerd(t, "node-1", false)
	c.waitPods(t)
	if now := c.exec(t, "node-1", "cat /var/lib/lab-data/first"); now != data {
		t.Errorf("data was %q and is %q", data, now)
	}
	if out := c.kubectl(t, "-n", "work", "exec", "data-node-1-0", "--", "/bin/busybox", "cat", "/data/first"); strings.TrimSpace(out) != data {
		t.Errorf("the pod sees %q, want %q", out, data)
	}
	after := c.exec(t, "node-1", "ls /var/lib/docker/image/overlay2/layerdb/sha256 | wc -l; ls /var/lib/docker/image/overlay2/imagedb/content/sha256 | sort | sha256sum")
	if layersOf(after) < layersOf(layers) || strings.Fields(after)[1] != strings.Fields(layers)[1] {
		t.Errorf("Docker's data changed: %s, was %s", after, layers)
	}
	c.nothingLeft(t, "node-1")
	if label := c.kubectl(t, "get", "ns", "kubectl-runtime", "-o", `jsonpath={.metadata.labels.pod-security\.kubernetes\.io/enforce}`); label != "restricted" {
		t.Errorf("pod-security label is %q", label)
	}
	if out := c.exec(t, "node-2", "wget -qO- http://"+c.NodeIP("node-1")+":18080/hostname || curl -fsS http://"+c.NodeIP("node-1")+":18080/hostname"); out == "" {
		t.Error("the DaemonSet's hostPort does not answer")
	}
}

// orphan starts what is left where Docker was starting a pod's container when containerd was restarted.
const orphan = `set -e
mkdir -p /root/orphan
docker export "$(docker create --name orphan-root lab.local/busybox:1 true)" | tar -C /root/orphan -x
docker rm orphan-root >/dev/null
ctr -n moby run -d --cgroup /kubepods/orphan --rootfs /root/orphan orphan /bin/busybox sleep 10000`

func layersOf(listing string) int {
	var n int
	_, _ = fmt.Sscan(listing, &n)
	return n
}

// onContainerd checks everything that must hold on a switched node.
func (c *cluster) onContainerd(t *testing.T, name string, cordoned bool) {
	t.Helper()
	n := c.node(t, name)
	if !n.ready() || n.Spec.Unschedulable != cordoned || !strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, "containerd://") {
		t.Errorf("%s: ready %t, unschedulable %t, runtime %s", name, n.ready(), n.Spec.Unschedulable, n.Status.NodeInfo.ContainerRuntimeVersion)
	}
	if out := c.exec(t, name, "for u in docker.service docker.socket; do systemctl is-active $u; systemctl is-enabled $u; done; true"); strings.ReplaceAll(out, "linked", "disabled") != "inactive\ndisabled\ninactive\ndisabled" {
		t.Errorf("%s: docker's units are %q", name, out)
	}
	if out := c.exec(t, name, "pgrep -x dockerd || true"); out != "" {
		t.Errorf("%s: dockerd runs as %s", name, out)
	}
	if out := c.exec(t, name, "ctr -n moby tasks ls 2>/dev/null | awk 'NR > 1 && $3 != \"STOPPED\"'"); out != "" {
		t.Errorf("%s: containers run under Docker: %s", name, out)
	}
	const logs = `crictl -r unix:///run/containerd/containerd.sock ps -q |
		xargs -r -n 1 crictl -r unix:///run/containerd/containerd.sock inspect -o go-template --template '{{.status.logPath}}'`
	if out := c.exec(t, name, logs+` | while read -r log; do [ ! -L "$log" ] || echo "$log"; done`); out != "" {
		t.Errorf("%s: containers write their logs through Docker's links: %s", name, out)
	}
	// A sandbox has its address before it is listed.
	eventually(t, 30*time.Second, func() string {
		sandboxes := c.exec(t, name, "crictl -r unix:///run/containerd/containerd.sock pods -q --no-trunc")
		leases := c.exec(t, name, "for f in /var/lib/cni/networks/*/[0-9]*; do [ -f $f ] && head -n1 $f; done; true")
		for lease := range strings.FieldsSeq(leases) {
			if !strings.Contains(sandboxes, lease) && !c.leakedByContainerd(t, name, lease) {
				return fmt.Sprintf("%s: an address is leased to %s, which is no sandbox of containerd", name, lease)
			}
		}
		return ""
	})
}

// leakedByContainerd reports whether containerd itself has left the address of a sandbox: a pod that is started before the agent of the network runs gets
// an address from host-local, then ADD and DEL of the plugin that needs the agent fail. containerd 2 removes such a sandbox without another DEL
// (containerd/containerd#12132), at any start of the node. The undo of kubelet-start frees it.
func (c *cluster) leakedByContainerd(t *testing.T, node, sandbox string) bool {
	t.Helper()
	return c.AgentCNI() && c.exec(t, node, `journalctl -q -u containerd | grep -c 'Failed to destroy network for sandbox .*`+sandbox+`' || true`) != "0"
}

// restartOnDocker has a container that stays on its node restart there. Its log's number is the one that a kubelet on containerd would come to
// by what that remembers of a switch before.
func (c *cluster) restartOnDocker(t *testing.T, node string) {
	t.Helper()
	const containers = "docker ps -q --filter label=io.kubernetes.container.name=kube-proxy"
	before := c.exec(t, node, containers)
	c.exec(t, node, "docker kill "+before)
	eventually(t, time.Minute, func() string {
		if now := c.exec(t, node, containers); now == "" || now == before {
			return "kube-proxy has not been restarted"
		}
		return ""
	})
}

func (c *cluster) testCordoned(t *testing.T) {
	c.kubectl(t, "cordon", "node-2")
	c.switchNode(t, 0, "node-2")
	c.onContainerd(t, "node-2", true)
	c.kubectl(t, "uncordon", "node-2")
	c.waitPods(t)
}
