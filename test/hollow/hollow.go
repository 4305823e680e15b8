// Package hollow plays what a node, the Job controller and the agent do with the API, so that the plugin's side can be tested against a
// real API server: it answers for the kubelet's logs and exec, and plays the agent's part from a script. Real nodes are in test/e2e.
package hollow

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

const (
	DockerVersion     = "docker://20.10.24"
	ContainerdVersion = "containerd://1.6.20"
)

// Node is a node on Docker, with the Job controller and the agent. Its exported fields are set before anything is asked of it.
type Node struct {
	T      *testing.T
	Name   string
	Client kubernetes.Interface
	// Script plays a phase; the default one succeeds.
	Script map[protocol.Phase]func(h *Node, spec protocol.Spec)
	// Checks are the canary's once the runtime has changed, ChecksBefore until then.
	Checks, ChecksBefore []nodejob.CanaryCheck
	// PodStatus, if set, is what the agent's pods get instead of running.
	PodStatus *corev1.ContainerStatus
	// CanaryStatus, if set, is what canaries get instead of running.
	CanaryStatus *corev1.ContainerStatus
	// OldAgent: the cutover's pod does not ask for the verification.
	OldAgent bool
	// Deaf: a pod that waits cannot be told.
	Deaf bool
	// CanaryHangs: the kubelet never reports a canary as gone.
	CanaryHangs bool
	// Silent, if set, is what the host does in the cutover while the kubelet is asleep and has not reported the container.
	Silent func(*Node)
	// Controller, if set, is the Job controller's client. It may be refused a pod, and says so.
	Controller atomic.Pointer[kubernetes.Clientset]
	// Clock is how far the node's clock is ahead of ours once the runtime has changed.
	Clock time.Duration
	// Answer, if set, is asked before the kubelet answers a request; it returns true if it has answered. Exec is that for commands.
	Answer func(w http.ResponseWriter, r *http.Request) bool
	Exec   func(command []string, out, errOut io.Writer) (done bool, err error)

	seen

	// asleep: the kubelet neither renews its Lease nor looks at pods.
	asleep  atomic.Bool
	renewed time.Time

	mu      sync.Mutex
	pause   time.Duration    // between two looks of the kubelet and the Job controller
	events  []protocol.Event // the event file on the host
	runtime string
	// switched is when the runtime last changed.
	switched time.Time
	epoch    int // grows when the containers die with their runtime
	begun    map[string]bool
	ended    map[string]bool
	asked    map[string]bool // the pods that wait and got the signal to start
}

// Events is the event file on the host.
func (h *Node) Events() []protocol.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

// NeverEnds is the annotation of a pod that the kubelet never reports as gone.
const NeverEnds = "test/never-ends"

// New creates a node on Docker and plays it until the test ends.
func New(t *testing.T, s *apiserver.Server, name string, change ...func(*corev1.Node)) *Node {
	t.Helper()
	config := s.Admin()
	config.ContentType = "application/vnd.kubernetes.protobuf" // as a kubelet does it, and text in it need not be UTF-8
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	h := &Node{
		T: t, Name: name, Client: client, pause: 50 * time.Millisecond, runtime: DockerVersion,
		Script: map[protocol.Phase]func(*Node, protocol.Spec){},
		Checks: []nodejob.CanaryCheck{{Name: "dns", OK: true}, {Name: "volume", OK: true}}, ChecksBefore: []nodejob.CanaryCheck{{Name: "dns", OK: true}, {Name: "volume", OK: true}},
		begun: map[string]bool{}, ended: map[string]bool{}, asked: map[string]bool{},
	}
	host := httptest.NewTLSServer(kubelet{h})
	t.Cleanup(host.Close)
	address, err := url.Parse(host.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(address.Port())
	if err != nil {
		t.Fatal(err)
	}
	change = append(change, func(node *corev1.Node) {
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
		node.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(port)
		node.Status.Conditions[0].LastHeartbeatTime = metav1.NewTime(time.Now().Add(-time.Minute))
	})
	s.CreateNodes(t, apiserver.Node(name, DockerVersion, "v1.23.17", change...))
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for ctx.Err() == nil {
			h.reconcile(ctx)
			h.mu.Lock()
			pause := h.pause
			h.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-stopped })
	return h
}

// SetPause sets the time between two looks of the kubelet and the Job controller; 50 ms by default.
func (h *Node) SetPause(pause time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pause = pause
}

// reconcile is kubelet, Job controller and garbage collector.
func (h *Node) reconcile(ctx context.Context) {
	node, err := h.Client.CoreV1().Nodes().Get(ctx, h.Name, metav1.GetOptions{})
	if err != nil {
		return
	}
	h.renew(ctx)
	h.sawCordon(node.Spec.Unschedulable)
	jobs, err := h.Client.BatchV1().Jobs(nodejob.Namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(nodejob.NodeLabels(h.Name)).String()})
	if err != nil {
		return
	}
	pods, err := h.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", h.Name).String()})
	if err != nil {
		return
	}
	runtime, settled := h.kind()
	owned := map[string]bool{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		owner := metav1.GetControllerOf(pod)
		isJobs := owner != nil && owner.Kind == "Job"
		if isJobs {
			owned[string(owner.UID)] = true
		}
		orphan := isJobs && !slices.ContainsFunc(jobs.Items, func(job batchv1.Job) bool { return job.UID == owner.UID })
		switch {
		case pod.DeletionTimestamp != nil && (pod.Annotations[NeverEnds] != "" || h.CanaryHangs && pod.Labels[nodejob.LabelPhase] == nodejob.PhaseCanary):
		case pod.DeletionTimestamp != nil || orphan:
			err := h.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
			if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
				h.T.Errorf("kill pod %s: %v", pod.Name, err)
			}
		case pod.Namespace == nodejob.Namespace && pod.Status.Phase == corev1.PodPending:
			h.startPod(ctx, pod)
		case owner != nil && owner.Kind == "DaemonSet" && pod.DeletionTimestamp == nil && !runsOn(pod, runtime) && time.Now().After(settled):
			h.SetStatus(ctx, pod, corev1.PodRunning, h.Running(pod, 0))
		}
	}
	for i := range jobs.Items {
		job := &jobs.Items[i]
		if owned[string(job.UID)] || job.DeletionTimestamp != nil {
			continue
		}
		pod := &corev1.Pod{ObjectMeta: job.Spec.Template.ObjectMeta, Spec: job.Spec.Template.Spec}
		pod.Namespace, pod.GenerateName = job.Namespace, job.Name+"-"
		pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(job, batchv1.SchemeGroupVersion.WithKind("Job"))}
		client := h.Client
		if c := h.Controller.Load(); c != nil {
			client = c
		}
		_, err := client.CoreV1().Pods(job.Namespace).Create(ctx, pod, metav1.CreateOptions{})
		switch {
		case err == nil || ctx.Err() != nil:
		case client != h.Client && apierrors.IsForbidden(err):
			h.refused(ctx, job, err)
		default:
			h.T.Errorf("create pod of job %s: %v", job.Name, err)
		}
	}
}

// refused is the Job controller's event for a pod that it could not create.
func (h *Node) refused(ctx context.Context, job *batchv1.Job, err error) {
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: job.Namespace, GenerateName: job.Name + "."},
		InvolvedObject: corev1.ObjectReference{APIVersion: "batch/v1", Kind: "Job", Namespace: job.Namespace, Name: job.Name, UID: job.UID},
		Type:           corev1.EventTypeWarning, Reason: "FailedCreate", Message: "Error creating: " + err.Error(), LastTimestamp: metav1.Now(),
	}
	if _, err := h.Client.CoreV1().Events(job.Namespace).Create(ctx, event, metav1.CreateOptions{}); err != nil && ctx.Err() == nil {
		h.T.Errorf("create event: %v", err)
	}
}

// renew renews the kubelet's Lease every second.
func (h *Node) renew(ctx context.Context) {
	if h.asleep.Load() || time.Since(h.renewed) < time.Second {
		return
	}
	h.renewed = time.Now()
	leases := h.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	patch := fmt.Sprintf(`{"spec":{"renewTime":%q}}`, h.renewed.UTC().Format(metav1.RFC3339Micro))
	_, err := leases.Patch(ctx, h.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: h.Name}, Spec: coordinationv1.LeaseSpec{RenewTime: ptr.To(metav1.NewMicroTime(h.renewed))},
		}, metav1.CreateOptions{})
	}
	if err != nil && ctx.Err() == nil {
		h.T.Errorf("renew lease of %s: %v", h.Name, err)
	}
}

// startPod is the kubelet: it starts the container, and with it the agent.
func (h *Node) startPod(ctx context.Context, pod *corev1.Pod) {
	if h.asleep.Load() {
		return
	}
	if h.Silent != nil && pod.Labels[nodejob.LabelPhase] == string(protocol.PhaseCutover) {
		work := h.Silent
		h.Silent = nil
		h.asleep.Store(true)
		go func() {
			defer h.asleep.Store(false)
			work(h)
		}()
		return
	}
	odd := h.PodStatus
	if h.CanaryStatus != nil && pod.Labels[nodejob.LabelPhase] == nodejob.PhaseCanary {
		odd = h.CanaryStatus
	}
	if odd != nil {
		status := *odd
		status.Name = pod.Spec.Containers[0].Name
		h.SetStatus(ctx, pod, corev1.PodPending, status)
		return
	}
	h.mu.Lock()
	begun := h.begun[pod.Name]
	h.begun[pod.Name] = true
	h.mu.Unlock()
	if pod.Labels[nodejob.LabelPhase] == nodejob.PhaseCanary {
		h.sawCanary(pod.Name)
	}
	if slices.Contains(pod.Spec.Containers[0].Args, "--wait") && !begun {
		node, err := h.Client.CoreV1().Nodes().Get(ctx, h.Name, metav1.GetOptions{})
		h.sawWaiting(err != nil || node.Spec.Unschedulable)
	}
	h.SetStatus(ctx, pod, corev1.PodRunning, h.Running(pod, 0))
	if phase := pod.Labels[nodejob.LabelPhase]; begun || phase == nodejob.PhaseCanary || phase == nodejob.PhaseEvidence {
		return
	}
	args := pod.Spec.Containers[0].Args
	h.sawStart(args)
	go func() {
		if slices.Contains(args, "--wait") && !h.awaitAsk(ctx, pod) {
			return
		}
		h.agent(ctx, pod, SpecOf(h.T, args))
	}()
}

// awaitAsk waits until a pod gets the signal to start; it is false for one that is removed before.
func (h *Node) awaitAsk(ctx context.Context, pod *corev1.Pod) bool {
	for ctx.Err() == nil {
		h.mu.Lock()
		asked := h.asked[pod.Name]
		h.mu.Unlock()
		if asked {
			return true
		}
		if _, err := h.Client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

// SpecOf is the specification among the arguments of the agent.
func SpecOf(t *testing.T, args []string) protocol.Spec {
	var spec protocol.Spec
	for _, arg := range args {
		if raw, ok := strings.CutPrefix(arg, "--spec="); ok {
			if err := json.Unmarshal([]byte(raw), &spec); err != nil {
				t.Errorf("spec in %q: %v", args, err)
			}
		}
	}
	return spec
}

func (h *Node) Running(pod *corev1.Pod, restarts int32) corev1.ContainerStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	kind, _, _ := strings.Cut(h.runtime, "://")
	return corev1.ContainerStatus{
		Name: pod.Spec.Containers[0].Name, Ready: true, RestartCount: restarts, ContainerID: kind + "://" + pod.Name,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}
}

func (h *Node) SetStatus(ctx context.Context, pod *corev1.Pod, phase corev1.PodPhase, status corev1.ContainerStatus) {
	pod = pod.DeepCopy()
	pod.Status.Phase = phase
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{status}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	pod.ResourceVersion = ""
	_, err := h.Client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	// Without a resource version, a conflict is a pod that was deleted meanwhile.
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
		h.T.Errorf("set status of pod %s: %v", pod.Name, err)
	}
}

// kind is the runtime's name, and when the kubelet has looked at pods that were there before.
func (h *Node) kind() (string, time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kind, _, _ := strings.Cut(h.runtime, "://")
	return kind, h.switched.Add(3 * time.Second)
}

// canaryChecks are what a canary reports now.
func (h *Node) canaryChecks() []nodejob.CanaryCheck {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.switched.IsZero() {
		return h.ChecksBefore
	}
	return h.Checks
}

func (h *Node) IsOn(runtime string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.HasPrefix(h.runtime, runtime)
}

// SwitchTo ends every log stream, as the containers' end does, and has the node report another runtime.
func (h *Node) SwitchTo(runtime string) {
	h.mu.Lock()
	h.epoch++
	h.runtime = runtime
	h.switched = time.Now()
	h.mu.Unlock()
	h.UpdateNode(func(node *corev1.Node) {
		node.Status.NodeInfo.ContainerRuntimeVersion = runtime
		beat, last := time.Now().Add(h.Clock), node.Status.Conditions[0].LastHeartbeatTime
		if beat.Unix() == last.Unix() { // heartbeats are whole seconds, and a kubelet would send another one
			beat = beat.Add(time.Second)
		}
		node.Status.Conditions[0].LastHeartbeatTime = metav1.NewTime(beat)
	})
}

// UpdateNode changes the Node's metadata and status.
func (h *Node) UpdateNode(change func(*corev1.Node)) {
	for {
		node, err := h.Client.CoreV1().Nodes().Get(context.Background(), h.Name, metav1.GetOptions{})
		if err == nil {
			change(node)
			_, err = h.Client.CoreV1().Nodes().UpdateStatus(context.Background(), node, metav1.UpdateOptions{})
		}
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil {
			h.T.Errorf("update node %s: %v", h.Name, err)
		}
		return
	}
}

// runsOn reports whether a runtime started all containers of a pod.
func runsOn(pod *corev1.Pod, runtime string) bool {
	return !slices.ContainsFunc(pod.Status.ContainerStatuses, func(status corev1.ContainerStatus) bool {
		return !strings.HasPrefix(status.ContainerID, runtime+"://")
	})
}

// AwaitRunning waits until the API shows a pod as running.
func (h *Node) AwaitRunning(name string) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		pod, err := h.Client.CoreV1().Pods(nodejob.Namespace).Get(context.Background(), name, metav1.GetOptions{})
		if err == nil && pod.Status.Phase == corev1.PodRunning {
			return
		}
		if time.Now().After(deadline) {
			h.T.Errorf("pod %s does not run: %v", name, err)
			return
		}
	}
}
