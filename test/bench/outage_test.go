package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

const (
	benchImage = "lab.local/runtime-agent:bench"
	benchNode  = "node-1"
)

// benchPods are what is evicted from the node and comes back to it.
const benchPods = `apiVersion: apps/v1
kind: Deployment
metadata: {name: bench, namespace: default}
spec:
  replicas: 3
  selector: {matchLabels: {app: bench}}
  template:
    metadata: {labels: {app: bench}}
    spec:
      nodeSelector: {kubernetes.io/hostname: node-1}
      terminationGracePeriodSeconds: 1
      containers:
        - {name: it, image: "lab.local/busybox:1", command: [/bin/busybox, sleep, "100000"]}
`

// procedure is that of kubernetes.io/docs/tasks/administer-cluster/migrating-from-dockershim/change-runtime-containerd, with what it leaves to
// the reader: images, the sandbox image, the cgroup driver.
type procedure struct {
	units string // of Docker, to be stopped
	files string // of the kubelet, to be edited
	edit  string // a sed script for them
}

var procedures = map[string]procedure{
	lab.Dockershim: {
		units: "docker.service docker.socket", files: "/var/lib/kubelet/kubeadm-flags.env",
		edit: `s|--network-plugin=[^ "]*||; s|"$| --container-runtime=remote --container-runtime-endpoint=unix:///run/containerd/containerd.sock"|`,
	},
	lab.CRIDockerd: {
		units: "cri-docker.service cri-docker.socket docker.service docker.socket", files: "/var/lib/kubelet/config.yaml /var/lib/kubelet/instance-config.yaml",
		edit: `s|^containerRuntimeEndpoint:.*|containerRuntimeEndpoint: unix:///run/containerd/containerd.sock|`,
	},
}

// forth is the procedure as a script; the words in capitals are the procedure's fields.
const forth = `set -e
images=$(docker images --format '{{.Repository}}:{{.Tag}}' | grep -v '<none>')
docker save $images -o /var/tmp/bench-images.tar
systemctl stop kubelet
systemctl disable --now UNITS 2>/dev/null
mkdir /var/tmp/bench-files
cp -a --parents /etc/containerd/config.toml FILES /var/tmp/bench-files
pause=$(printf '%s\n' $images | grep /pause: | head -n 1)
containerd config default | sed -e 's/SystemdCgroup = false/SystemdCgroup = true/' -e "s|sandbox_image = .*|sandbox_image = \"$pause\"|" \
	-e "s|^\( *sandbox\) = .*|\1 = \"$pause\"|" -e 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' > /etc/containerd/config.toml
systemctl restart containerd
ctr -n k8s.io images import /var/tmp/bench-images.tar >/dev/null
sed -i 'EDIT' FILES
systemctl start kubelet`

// back undoes forth.
const back = `set -e
systemctl stop kubelet
crictl -r unix:///run/containerd/containerd.sock rmp -fa >/dev/null 2>&1
cp -a /var/tmp/bench-files/. /
ctr -n k8s.io images ls -q | xargs -r ctr -n k8s.io images rm --sync >/dev/null
systemctl restart containerd
systemctl enable --now UNITS 2>/dev/null
systemctl start kubelet
rm -rf /var/tmp/bench-*`

func (p procedure) script(text string) string {
	return strings.NewReplacer("UNITS", p.units, "FILES", p.files, "EDIT", p.edit).Replace(text)
}

// outage is a lab with a watch on the node.
type outage struct {
	t         *testing.T
	procedure procedure
	lab       *lab.Lab
	client    kubernetes.Interface
	env       []string
	// switched is what the last switch printed.
	switched switched

	mu       sync.Mutex
	cordoned time.Time
	last     time.Duration
}

// TestOutOfService compares how long a node takes no pods, on an old kubelet and on a new one.
func TestOutOfService(t *testing.T) {
	count := runs(t)
	needRoot(t)
	var text strings.Builder
	for _, profile := range []struct{ name, title string }{
		{lab.Dockershim, "Kubernetes 1.23 with dockershim, Docker 20.10, containerd 1.6"},
		{lab.CRIDockerd, "Kubernetes 1.37 with cri-dockerd, Docker 26.1, containerd 2.4"},
	} {
		if !t.Run(profile.name, func(t *testing.T) { text.WriteString(profile.title + ".\n\n" + compareOutages(t, profile.name, count)) }) {
			return
		}
	}
	record(t, "out-of-service", strings.TrimSuffix(text.String(), "\n"))
}

// compareOutages returns what is to be told of one profile.
func compareOutages(t *testing.T, profile string, count int) string {
	o := upOutage(t, profile)
	ways := []struct {
		name string
		do   func()
	}{{"floor: drain and restart of the kubelet", o.floor}, {"kubectl runtime switch", o.ours}, {"the documented procedure by script", o.byHand}}
	times := make([][]time.Duration, len(ways))
	var stages []string
	var busy loads
	for range count {
		busy.note()
		for way, w := range ways {
			o.ready("docker://", time.Time{})
			o.kubectl("rollout", "status", "deployment/bench", "--timeout", "5m")
			o.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout", "5m")
			w.do()
			times[way] = append(times[way], o.outOfService())
			t.Logf("%s: %s", w.name, times[way][len(times[way])-1])
			if way == 1 {
				stages = append(stages, o.back())
			}
			if way == 2 {
				o.node(o.procedure.script(back))
			}
		}
	}
	var table strings.Builder
	table.WriteString("| way | out of service | to the floor | to the procedure |\n|---|---|---|---|\n")
	for way, w := range ways {
		middle := median(times[way]).Seconds()
		fmt.Fprintf(&table, "| %s | %s | %.2f × | %.2f × |\n", w.name, span(times[way]), middle/median(times[0]).Seconds(), middle/median(times[2]).Seconds())
	}
	return busy.over(count) + "\n\n" + table.String() + "\nWhere the switch's time goes, run by run:\n\n" + strings.Join(stages, "") + "\n"
}

func upOutage(t *testing.T, profile string) *outage {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.Up(t.Context(), lab.Options{Profile: profile, Nodes: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	for _, node := range l.Nodes() {
		if err := l.LoadImage(t.Context(), node, filepath.Join(bin, "agent-rootfs.tar"), benchImage); err != nil {
			t.Fatalf("no build to measure: %v: run `make build lab`", err)
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	o := &outage{t: t, procedure: procedures[profile], lab: l, client: client}
	o.env = append(os.Environ(), "KUBECONFIG="+l.Kubeconfig(), "PATH="+bin+":"+l.BinDir()+":"+os.Getenv("PATH"))
	go o.watch(t.Context())
	path := filepath.Join(t.TempDir(), "pods.yaml")
	if err := os.WriteFile(path, []byte(benchPods), 0o600); err != nil {
		t.Fatal(err)
	}
	o.kubectl("apply", "-f", path)
	return o
}

// watch notes from when to when the node is cordoned.
func (o *outage) watch(ctx context.Context) {
	for ctx.Err() == nil {
		w, err := o.client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", benchNode).String()})
		if err != nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		for event := range w.ResultChan() {
			node, ok := event.Object.(*corev1.Node)
			if !ok {
				continue
			}
			o.mu.Lock()
			switch {
			case node.Spec.Unschedulable && o.cordoned.IsZero():
				o.cordoned = time.Now()
			case !node.Spec.Unschedulable && !o.cordoned.IsZero():
				o.last, o.cordoned = time.Since(o.cordoned), time.Time{}
			}
			o.mu.Unlock()
		}
	}
}

// outOfService is how long the node was cordoned last, once it no longer is.
func (o *outage) outOfService() time.Duration {
	o.t.Helper()
	var last time.Duration
	o.until(time.Minute, func() string {
		o.mu.Lock()
		defer o.mu.Unlock()
		last = o.last
		if !o.cordoned.IsZero() || last == 0 {
			return "the node has not been cordoned and uncordoned"
		}
		o.last = 0
		return ""
	})
	return last
}

func (o *outage) until(limit time.Duration, look func() string) {
	o.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		last := look()
		if last == "" {
			return
		}
		if time.Now().After(deadline) {
			o.t.Fatalf("still after %s: %s", limit, last)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (o *outage) kubectl(args ...string) string {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(o.lab.BinDir(), "kubectl"), args...)
	cmd.Env = o.env
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		o.t.Fatalf("kubectl %s: %v\n%s%s", strings.Join(args, " "), err, out, said.String())
	}
	return string(out)
}

func (o *outage) node(script string) {
	o.t.Helper()
	if _, err := o.lab.Exec(o.t.Context(), benchNode, "sh", "-c", script); err != nil {
		o.t.Fatal(err)
	}
}

// status is the node's runtime, whether it is Ready, and when it last said so.
func (o *outage) status() (runtime string, ready bool, beat time.Time) {
	node, err := o.client.CoreV1().Nodes().Get(o.t.Context(), benchNode, metav1.GetOptions{})
	if err != nil {
		return err.Error(), false, time.Time{}
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			ready, beat = condition.Status == corev1.ConditionTrue, condition.LastHeartbeatTime.Time
		}
	}
	return node.Status.NodeInfo.ContainerRuntimeVersion, ready, beat
}

func (o *outage) heartbeat() time.Time {
	_, _, beat := o.status()
	return beat
}

// ready waits until the node is Ready on a runtime, by a heartbeat after the given one.
func (o *outage) ready(runtime string, after time.Time) {
	o.t.Helper()
	o.until(5*time.Minute, func() string {
		is, ready, beat := o.status()
		if ready && beat.After(after) && strings.HasPrefix(is, runtime) {
			return ""
		}
		return fmt.Sprintf("the node is on %s, Ready %t, last heartbeat %s", is, ready, beat)
	})
}

func (o *outage) drain() {
	o.t.Helper()
	o.kubectl("drain", benchNode, "--ignore-daemonsets", "--delete-emptydir-data", "--force")
}

func (o *outage) floor() {
	o.drain()
	before := o.heartbeat()
	o.node("systemctl restart kubelet")
	o.ready("docker://", before)
	o.kubectl("uncordon", benchNode)
}

func (o *outage) byHand() {
	o.drain()
	o.node(o.procedure.script(forth))
	o.ready("containerd://", time.Time{})
	o.kubectl("uncordon", benchNode)
}

// switched is what `switch -o json` prints of it.
type switched struct {
	Nodes []struct {
		Stages []struct {
			Stage   string
			Seconds float64
		}
		Steps []struct {
			Phase, Step string
			Seconds     float64
		}
	}
}

func (o *outage) ours() {
	out := o.kubectl("runtime", "switch", benchNode, "--yes", "--image", benchImage, "--soak", "0s", "-o", "json")
	o.switched = switched{}
	if err := json.Unmarshal([]byte(out), &o.switched); err != nil || len(o.switched.Nodes) != 1 {
		o.t.Fatalf("switch -o json: %v\n%s", err, out)
	}
}

// back rolls the node back and says where the switch's time went.
func (o *outage) back() string {
	var parts, steps []string
	for _, stage := range o.switched.Nodes[0].Stages {
		if stage.Stage != "claim" && stage.Stage != "prepare" {
			parts = append(parts, fmt.Sprintf("%s %.1f s", stage.Stage, stage.Seconds))
		}
	}
	for _, step := range o.switched.Nodes[0].Steps {
		if step.Phase == "cutover" && step.Seconds >= 0.1 {
			steps = append(steps, fmt.Sprintf("%s %.1f s", step.Step, step.Seconds))
		}
	}
	o.kubectl("runtime", "rollback", benchNode, "--yes", "--image", benchImage, "--soak", "0s")
	o.outOfService() // of the rollback
	return fmt.Sprintf("- %s; in the cutover: %s\n", strings.Join(parts, ", "), strings.Join(steps, ", "))
}
