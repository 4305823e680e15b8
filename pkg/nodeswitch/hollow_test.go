package nodeswitch

import (
	"context"
	"encoding/json"
	"fmt"
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

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

const (
	dockerVersion     = "docker://20.10.24"
	containerdVersion = "containerd://1.6.20"
)

// hollow stands for what a node, the Job controller and the agent do with the API, so that the API side can be tested against a
// real API server: it answers for the kubelet's logs and exec, and plays the agent's part from a script. Real nodes are in test/e2e.
type hollow struct {
	t      *testing.T
	name   string
	client kubernetes.Interface
	// script plays a phase; the default one succeeds.
	script map[protocol.Phase]func(h *hollow, spec protocol.Spec)
	// checks are the canary's once the runtime has changed, checksBefore until then.
	checks, checksBefore []nodejob.CanaryCheck
	// podStatus, if set, is what the agent's pods get instead of running.
	podStatus *corev1.ContainerStatus
	// canaryStatus, if set, is what canaries get instead of running.
	canaryStatus *corev1.ContainerStatus
	// asleep: the kubelet neither renews its Lease nor looks at pods.
	asleep  atomic.Bool
	renewed time.Time
	// oldAgent: the cutover's pod does not ask for the verification.
	oldAgent bool
	// deaf: a pod that waits cannot be told.
	deaf bool
	// canaryHangs: the kubelet never reports a canary as gone.
	canaryHangs bool
	// silent, if set, is what the host does in the cutover while the kubelet is asleep and has not reported the container.
	silent func(*hollow)
	// controller, if set, is the Job controller's client. It may be refused a pod, and says so.
	controller atomic.Pointer[kubernetes.Clientset]
	// clock is how far the node's clock is ahead of ours once the runtime has changed.
	clock time.Duration

	mu      sync.Mutex
	events  []protocol.Event // the event file on the host
	runtime string
	// switched is when the runtime last changed.
	switched time.Time
	epoch    int // grows when the containers die with their runtime
	begun    map[string]bool
	ended    map[string]bool
	asked    map[string]bool // the pods that wait and got the signal to start
	// waitedCordoned: a pod that waits was started while the node was cordoned.
	waitedCordoned bool
	canaries       map[string]bool  // the names of those that were started
	started        []string         // the agent's arguments in the pods that were started, but for folder and spec
	phases         []protocol.Phase // that were asked for, in order
	cordons        []bool
}

// neverEnds is the annotation of a pod that the kubelet never reports as gone.
const neverEnds = "test/never-ends"

// newHollow creates a node on Docker and plays it until the test ends.
func newHollow(t *testing.T, s *apiserver.Server, name string, change ...func(*corev1.Node)) *hollow {
	t.Helper()
	h := &hollow{
		t: t, name: name, client: s.Client(), runtime: dockerVersion,
		script: map[protocol.Phase]func(*hollow, protocol.Spec){},
		checks: []nodejob.CanaryCheck{{Name: "dns", OK: true}, {Name: "volume", OK: true}}, checksBefore: []nodejob.CanaryCheck{{Name: "dns", OK: true}, {Name: "volume", OK: true}},
		begun: map[string]bool{}, ended: map[string]bool{}, asked: map[string]bool{}, canaries: map[string]bool{},
	}
	kubelet := httptest.NewTLSServer(http.HandlerFunc(h.serve))
	t.Cleanup(kubelet.Close)
	address, err := url.Parse(kubelet.URL)
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
	s.CreateNodes(t, apiserver.Node(name, dockerVersion, "v1.23.17", change...))
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for ctx.Err() == nil {
			h.reconcile(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-stopped })
	return h
}

// reconcile is kubelet, Job controller and garbage collector.
func (h *hollow) reconcile(ctx context.Context) {
	node, err := h.client.CoreV1().Nodes().Get(ctx, h.name, metav1.GetOptions{})
	if err != nil {
		return
	}
	h.renew(ctx)
	h.mu.Lock()
	if n := len(h.cordons); n == 0 || h.cordons[n-1] != node.Spec.Unschedulable {
		h.cordons = append(h.cordons, node.Spec.Unschedulable)
	}
	h.mu.Unlock()
	jobs, err := h.client.BatchV1().Jobs(nodejob.Namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(nodejob.NodeLabels(h.name)).String()})
	if err != nil {
		return
	}
	pods, err := h.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", h.name).String()})
	if err != nil {
		return
	}
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
		case pod.DeletionTimestamp != nil && (pod.Annotations[neverEnds] != "" || h.canaryHangs && pod.Labels[nodejob.LabelPhase] == nodejob.PhaseCanary):
		case pod.DeletionTimestamp != nil || orphan:
			err := h.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
			if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
				h.t.Errorf("kill pod %s: %v", pod.Name, err)
			}
		case pod.Namespace == nodejob.Namespace && pod.Status.Phase == corev1.PodPending:
			h.startPod(ctx, pod)
		case owner != nil && owner.Kind == "DaemonSet" && pod.DeletionTimestamp == nil && !runsOn(pod, h.kind()) && time.Now().After(h.settled()):
			h.setStatus(ctx, pod, corev1.PodRunning, h.running(pod, 0))
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
		client := h.client
		if c := h.controller.Load(); c != nil {
			client = c
		}
		_, err := client.CoreV1().Pods(job.Namespace).Create(ctx, pod, metav1.CreateOptions{})
		switch {
		case err == nil || ctx.Err() != nil:
		case client != h.client && apierrors.IsForbidden(err):
			h.refused(ctx, job, err)
		default:
			h.t.Errorf("create pod of job %s: %v", job.Name, err)
		}
	}
}

// refused is the Job controller's event for a pod that it could not create.
func (h *hollow) refused(ctx context.Context, job *batchv1.Job, err error) {
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: job.Namespace, GenerateName: job.Name + "."},
		InvolvedObject: corev1.ObjectReference{APIVersion: "batch/v1", Kind: "Job", Namespace: job.Namespace, Name: job.Name, UID: job.UID},
		Type:           corev1.EventTypeWarning, Reason: "FailedCreate", Message: "Error creating: " + err.Error(), LastTimestamp: metav1.Now(),
	}
	if _, err := h.client.CoreV1().Events(job.Namespace).Create(ctx, event, metav1.CreateOptions{}); err != nil && ctx.Err() == nil {
		h.t.Errorf("create event: %v", err)
	}
}

// renew renews the kubelet's Lease every second.
func (h *hollow) renew(ctx context.Context) {
	if h.asleep.Load() || time.Since(h.renewed) < time.Second {
		return
	}
	h.renewed = time.Now()
	leases := h.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	patch := fmt.Sprintf(`{"spec":{"renewTime":%q}}`, h.renewed.UTC().Format(metav1.RFC3339Micro))
	_, err := leases.Patch(ctx, h.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: h.name}, Spec: coordinationv1.LeaseSpec{RenewTime: ptr.To(metav1.NewMicroTime(h.renewed))},
		}, metav1.CreateOptions{})
	}
	if err != nil && ctx.Err() == nil {
		h.t.Errorf("renew lease of %s: %v", h.name, err)
	}
}

// startPod is the kubelet: it starts the container, and with it the agent.
func (h *hollow) startPod(ctx context.Context, pod *corev1.Pod) {
	if h.asleep.Load() {
		return
	}
	if h.silent != nil && pod.Labels[nodejob.LabelPhase] == string(protocol.PhaseCutover) {
		work := h.silent
		h.silent = nil
		h.asleep.Store(true)
		go func() {
			defer h.asleep.Store(false)
			work(h)
		}()
		return
	}
	odd := h.podStatus
	if h.canaryStatus != nil && pod.Labels[nodejob.LabelPhase] == nodejob.PhaseCanary {
		odd = h.canaryStatus
	}
	if odd != nil {
		status := *odd
		status.Name = pod.Spec.Containers[0].Name
		h.setStatus(ctx, pod, corev1.PodPending, status)
		return
	}
	h.mu.Lock()
	begun := h.begun[pod.Name]
	h.begun[pod.Name] = true
	if pod.Labels[nodejob.LabelPhase] == nodejob.PhaseCanary {
		h.canaries[pod.Name] = true
	}
	h.mu.Unlock()
	if slices.Contains(pod.Spec.Containers[0].Args, "--wait") && !begun {
		node, err := h.client.CoreV1().Nodes().Get(ctx, h.name, metav1.GetOptions{})
		h.mu.Lock()
		h.waitedCordoned = err != nil || node.Spec.Unschedulable
		h.mu.Unlock()
	}
	h.setStatus(ctx, pod, corev1.PodRunning, h.running(pod, 0))
	if phase := pod.Labels[nodejob.LabelPhase]; begun || phase == nodejob.PhaseCanary || phase == nodejob.PhaseEvidence {
		return
	}
	args := pod.Spec.Containers[0].Args
	h.mu.Lock()
	h.started = append(h.started, strings.Join(slices.Delete(slices.Clone(args), 1, 3), " "))
	h.mu.Unlock()
	go func() {
		if slices.Contains(args, "--wait") && !h.awaitAsk(ctx, pod) {
			return
		}
		h.agent(ctx, pod, specOf(h.t, args))
	}()
}

// awaitAsk waits until a pod gets the signal to start; it is false for one that is removed before.
func (h *hollow) awaitAsk(ctx context.Context, pod *corev1.Pod) bool {
	for ctx.Err() == nil {
		h.mu.Lock()
		asked := h.asked[pod.Name]
		h.mu.Unlock()
		if asked {
			return true
		}
		if _, err := h.client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

func specOf(t *testing.T, args []string) protocol.Spec {
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

func (h *hollow) running(pod *corev1.Pod, restarts int32) corev1.ContainerStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	kind, _, _ := strings.Cut(h.runtime, "://")
	return corev1.ContainerStatus{
		Name: pod.Spec.Containers[0].Name, Ready: true, RestartCount: restarts, ContainerID: kind + "://" + pod.Name,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}
}

func (h *hollow) setStatus(ctx context.Context, pod *corev1.Pod, phase corev1.PodPhase, status corev1.ContainerStatus) {
	pod = pod.DeepCopy()
	pod.Status.Phase = phase
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{status}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	pod.ResourceVersion = ""
	_, err := h.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	// Without a resource version, a conflict is a pod that was deleted meanwhile.
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
		h.t.Errorf("set status of pod %s: %v", pod.Name, err)
	}
}

// agent plays what a pod asks for, and then ends the pod.
func (h *hollow) agent(ctx context.Context, pod *corev1.Pod, spec protocol.Spec) {
	if result := h.play(spec); spec.Phase == protocol.PhaseCutover && result.Outcome == protocol.OutcomeSucceeded && !h.oldAgent {
		spec.Phase = protocol.PhaseVerify
		h.play(spec)
	}
	restarts := int32(0)
	if h.isOn(inventory.RuntimeContainerd) {
		restarts = 1
	}
	status := h.running(pod, restarts)
	status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed"}}
	h.setStatus(ctx, pod, corev1.PodSucceeded, status)
	h.mu.Lock()
	h.ended[pod.Name] = true
	h.mu.Unlock()
}

// play plays a phase that has no result yet, as the host unit would, and returns its result.
func (h *hollow) play(spec protocol.Spec) protocol.Result {
	result := func() (found *protocol.Result) {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, event := range h.events {
			if event.Result != nil && event.Phase == spec.Phase && event.Run == spec.Run {
				found = event.Result
			}
		}
		return found
	}
	h.mu.Lock()
	h.phases = append(h.phases, spec.Phase)
	h.mu.Unlock()
	if result() == nil {
		play := h.script[spec.Phase]
		if play == nil {
			play = func(h *hollow, spec protocol.Spec) { h.succeed(spec) }
		}
		play(h, spec)
	}
	if result() == nil {
		return protocol.Result{}
	}
	return *result()
}

// inMidst does something once a stage that has begun is where it waits: the node is cordoned, or the agent at work.
func (h *hollow) inMidst(stage Stage, do func()) {
	isThere := func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		switch stage {
		case StageDrain:
			return len(h.cordons) > 0 && h.cordons[len(h.cordons)-1]
		case StagePrepare, StageCutover, StageRollback:
			return slices.Contains(h.phases, protocol.Phase(stage))
		default:
			return true
		}
	}
	for deadline := time.Now().Add(time.Minute); !isThere() && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	do()
}

// kind is the runtime's name, settled when the kubelet has looked at pods that were there before.
func (h *hollow) kind() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	kind, _, _ := strings.Cut(h.runtime, "://")
	return kind
}

func (h *hollow) settled() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.switched.Add(3 * time.Second)
}

// canaryChecks are what a canary reports now.
func (h *hollow) canaryChecks() []nodejob.CanaryCheck {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.switched.IsZero() {
		return h.checksBefore
	}
	return h.checks
}

func (h *hollow) isOn(runtime string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.HasPrefix(h.runtime, runtime)
}

// emit appends to the event file.
func (h *hollow) emit(spec protocol.Spec, event protocol.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	event.Version, event.Seq, event.Run, event.Phase = protocol.Version, int64(len(h.events)+1), spec.Run, spec.Phase
	event.Time = time.Now().UTC()
	h.events = append(h.events, event)
}

func (h *hollow) result(spec protocol.Spec, result protocol.Result) {
	h.emit(spec, protocol.Event{Result: &result})
}

// succeed is what a phase does when all goes well.
func (h *hollow) succeed(spec protocol.Spec) {
	step := func(id string, state protocol.StepState) {
		h.emit(spec, protocol.Event{Step: &protocol.Step{ID: id, Title: "Step " + id, State: state}})
	}
	switch spec.Phase {
	case protocol.PhasePrepare:
		h.emit(spec, protocol.Event{Facts: &protocol.Facts{OldEndpoint: "dockershim", NewEndpoint: "unix:///run/containerd/containerd.sock", Warnings: []string{"live-restore is not carried over"}}})
		step("images", protocol.StepStarted)
		step("images", protocol.StepDone)
		h.result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded, ChangedFiles: []string{"/etc/containerd/config.toml"}})
	case protocol.PhaseCutover:
		step("kubelet-stop", protocol.StepStarted)
		h.switchTo(containerdVersion)
		step("kubelet-stop", protocol.StepDone)
		h.result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded, RuntimeVersion: containerdVersion, ChangedFiles: []string{"/var/lib/kubelet/kubeadm-flags.env"}})
	case protocol.PhasePlan:
		h.emit(spec, protocol.Event{Facts: &protocol.Facts{KubeletVersion: "v1.23.17"}})
		h.emit(spec, protocol.Event{Finding: &protocol.Finding{Check: protocol.CheckDisk, Message: "enough"}})
		h.emit(spec, protocol.Event{PlanStep: &protocol.PlanStep{Phase: protocol.PhasePrepare, ID: "inspect", Title: "Inspect"}})
		for i, part := range []string{"--- /a\n", "+++ /a\n"} {
			h.emit(spec, protocol.Event{FileChange: &protocol.FileChange{Path: "/a", Diff: part, Continues: i == 0}})
		}
		h.emit(spec, protocol.Event{FileChange: &protocol.FileChange{Path: "/b"}})
		h.result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded})
	case protocol.PhaseVerify:
		h.result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded})
	case protocol.PhaseRollback:
		h.switchTo(dockerVersion)
		h.result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded, RuntimeVersion: dockerVersion})
	}
}

// switchTo ends every log stream, as the containers' end does, and has the node report another runtime.
func (h *hollow) switchTo(runtime string) {
	h.mu.Lock()
	h.epoch++
	h.runtime = runtime
	h.switched = time.Now()
	h.mu.Unlock()
	h.updateNode(func(node *corev1.Node) {
		node.Status.NodeInfo.ContainerRuntimeVersion = runtime
		beat, last := time.Now().Add(h.clock), node.Status.Conditions[0].LastHeartbeatTime
		if beat.Unix() == last.Unix() { // heartbeats are whole seconds, and a kubelet would send another one
			beat = beat.Add(time.Second)
		}
		node.Status.Conditions[0].LastHeartbeatTime = metav1.NewTime(beat)
	})
}

func (h *hollow) updateNode(change func(*corev1.Node)) {
	for {
		node, err := h.client.CoreV1().Nodes().Get(context.Background(), h.name, metav1.GetOptions{})
		if err == nil {
			change(node)
			_, err = h.client.CoreV1().Nodes().UpdateStatus(context.Background(), node, metav1.UpdateOptions{})
		}
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil {
			h.t.Errorf("update node %s: %v", h.name, err)
		}
		return
	}
}
