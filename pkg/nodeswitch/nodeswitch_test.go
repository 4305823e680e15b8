package nodeswitch

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

var server apiserver.Shared

// TestMain runs many tests at once unless -parallel says otherwise: they wait for polls and timeouts most of their time.
func TestMain(m *testing.M) {
	flag.Parse()
	if parallel := flag.Lookup("test.parallel").Value; parallel.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := parallel.Set("12"); err != nil {
			panic(err)
		}
	}
	os.Exit(server.Main(m))
}

const agentImage = "registry.example/agent:1"

// recorder keeps updates.
type recorder struct {
	mu      sync.Mutex
	updates []Update
	onStage func(Stage)
}

func (r *recorder) Observe(u Update) {
	r.mu.Lock()
	r.updates = append(r.updates, u)
	onStage := r.onStage
	r.mu.Unlock()
	if u.Kind == StageBegun && onStage != nil {
		onStage(u.Stage)
	}
}

// stages are the stages that were begun.
func (r *recorder) stages() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, u := range r.updates {
		if u.Kind == StageBegun {
			names = append(names, string(u.Stage))
		}
	}
	return strings.Join(names, " ")
}

func (r *recorder) said(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.updates, func(u Update) bool { return strings.Contains(u.Text, text) })
}

func newRollout(s *apiserver.Server, observer Observer, change ...func(*Options)) *Switcher {
	options := Options{
		Drain: drain.Options{GracePeriodSeconds: drain.PodGrace, Timeout: time.Minute},
		Image: agentImage, PullPolicy: corev1.PullIfNotPresent, CutoverTimeout: 30 * time.Second,
	}
	for _, c := range change {
		c(&options)
	}
	return New(Config{
		Client: s.Client(), REST: s.Admin(), Clock: clock.RealClock{}, Observer: observer, Options: options,
		Holder: fmt.Sprintf("tester@here/%p", observer),
	})
}

func getNode(t *testing.T, s *apiserver.Server, name string) *corev1.Node {
	t.Helper()
	node, err := s.Client().CoreV1().Nodes().Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return node
}

// nothingLeft checks that no Job, pod or Lease of a node is left.
func nothingLeft(t *testing.T, s *apiserver.Server, node string) {
	t.Helper()
	ctx := context.Background()
	selector := metav1.ListOptions{LabelSelector: labels.SelectorFromSet(nodejob.NodeLabels(node)).String()}
	deadline := time.Now().Add(10 * time.Second)
	for {
		jobs, err := s.Client().BatchV1().Jobs(nodejob.Namespace).List(ctx, selector)
		if err != nil {
			t.Fatal(err)
		}
		pods, err := s.Client().CoreV1().Pods(nodejob.Namespace).List(ctx, selector)
		if err != nil {
			t.Fatal(err)
		}
		_, leaseErr := s.Client().CoordinationV1().Leases(nodejob.Namespace).Get(ctx, node, metav1.GetOptions{})
		if len(jobs.Items)+len(pods.Items) == 0 && apierrors.IsNotFound(leaseErr) {
			// A run that can be resumed is open.
			if isOpenFor(t, s, node) && !nodestate.Read(getNode(t, s, node)).IsRunOpen() {
				t.Errorf("namespace %s is still open for node %s", nodejob.Namespace, node)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left: %d jobs, %d pods, lease: %v", len(jobs.Items), len(pods.Items), leaseErr)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// wantError checks how a switch failed.
func wantError(t *testing.T, err error, outcome Outcome, text string) *Error {
	t.Helper()
	var failed *Error
	if !errors.As(err, &failed) {
		t.Fatalf("error %v is no *Error", err)
	}
	if failed.Outcome != outcome {
		t.Errorf("outcome %d, want %d: %v", failed.Outcome, outcome, err)
	}
	if !strings.Contains(err.Error(), text) {
		t.Errorf("error %q does not say %q", err, text)
	}
	return failed
}

// createPod creates a pod that a controller would create again.
func createPod(t *testing.T, s *apiserver.Server, node, name string, change ...func(*corev1.Pod)) {
	t.Helper()
	ctx := context.Background()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, Labels: map[string]string{"app": name},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "x", UID: "1", Controller: ptr.To(true)}},
		},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "registry.example/" + name + ":1"}}},
	}
	for _, c := range change {
		c(pod)
	}
	created, err := s.Client().CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := s.Client().CoreV1().Pods("default").Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	created.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: "c", Ready: true, ContainerID: "docker://" + name}},
	}
	if _, err := s.Client().CoreV1().Pods("default").UpdateStatus(ctx, created, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// createDaemonPod creates a DaemonSet and its pod on a node, ready on Docker.
func createDaemonPod(t *testing.T, s *apiserver.Server, node, name string) {
	t.Helper()
	labels := map[string]string{"app": name}
	sets := s.Client().AppsV1().DaemonSets("default")
	_, err := sets.Create(t.Context(), &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sets.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	createPod(t, s, node, name, func(pod *corev1.Pod) { pod.OwnerReferences[0].Kind, pod.OwnerReferences[0].Name = "DaemonSet", name })
}

func TestSwitch(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "good", func(node *corev1.Node) {
		node.Annotations[nodestate.AnnotationCRISocket] = "/var/run/dockershim.sock"
	})
	createPod(t, s, "good", "web")
	createDaemonPod(t, s, "good", "proxy")
	observer := &recorder{}
	report, err := newRollout(s, observer, func(o *Options) { o.Soak = 2 * time.Second }).Switch(t.Context(), "good")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := observer.stages(), "claim prepare drain cutover verify uncordon soak"; got != want {
		t.Errorf("stages %q, want %q", got, want)
	}
	if report.From != dockerVersion || report.To != containerdVersion || report.OutOfService <= 0 || report.Resumed {
		t.Errorf("report %+v", report)
	}
	if want := []string{"/etc/containerd/config.toml", "/var/lib/kubelet/kubeadm-flags.env"}; !slices.Equal(report.ChangedFiles, want) {
		t.Errorf("changed files %q", report.ChangedFiles)
	}
	if !slices.Contains(report.Warnings, "live-restore is not carried over") {
		t.Errorf("warnings %q", report.Warnings)
	}
	node := getNode(t, s, "good")
	if node.Spec.Unschedulable {
		t.Error("the node is cordoned")
	}
	for key, want := range map[string]string{
		nodestate.AnnotationPhase: string(nodestate.StateDone), nodestate.AnnotationFrom: dockerVersion, nodestate.AnnotationTo: containerdVersion,
		nodestate.AnnotationRun: report.Run, nodestate.AnnotationCRISocket: "unix:///var/run/containerd/containerd.sock", nodestate.AnnotationOldCRISocket: "/var/run/dockershim.sock",
	} {
		if got := node.Annotations[key]; got != want {
			t.Errorf("annotation %s is %q, want %q", key, got, want)
		}
	}
	if _, ok := node.Annotations[nodestate.AnnotationWasUnschedulable]; ok {
		t.Error("was-unschedulable is left")
	}
	if times, measured := Measured([]corev1.Node{*node}); measured != 1 || times.Total() <= 0 {
		t.Errorf("the node says that its switch took %q", node.Annotations[nodestate.AnnotationTook])
	}
	if _, err := s.Client().CoreV1().Pods("default").Get(t.Context(), "web", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the pod was not evicted: %v", err)
	}
	if proxy, err := s.Client().CoreV1().Pods("default").Get(t.Context(), "proxy", metav1.GetOptions{}); err != nil || !runsOn(proxy, "containerd") {
		t.Errorf("the node was given back before its DaemonSet's pod was on containerd: %v %v", proxy.Status.ContainerStatuses, err)
	}
	if fmt.Sprint(h.Phases()) != "[prepare cutover verify]" || fmt.Sprint(h.Cordons()) != "[false true false]" {
		t.Errorf("phases %v, cordons %v", h.Phases(), h.Cordons())
	}
	// Events come again with each stream and must be told once.
	steps := 0
	for _, u := range observer.updates {
		if u.Kind == AgentStep && u.Step.ID == "images" && u.Step.State == protocol.StepDone {
			steps++
		}
	}
	if steps != 1 {
		t.Errorf("a step was reported %d times", steps)
	}
	nothingLeft(t, s, "good")
}

func TestCordonedStaysCordoned(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	hollow.New(t, s, "cordoned", func(node *corev1.Node) { node.Spec.Unschedulable = true })
	report, err := newRollout(s, &recorder{}).Switch(t.Context(), "cordoned")
	if err != nil {
		t.Fatal(err)
	}
	if !report.Cordoned || report.OutOfService != 0 {
		t.Errorf("report %+v", report)
	}
	node := getNode(t, s, "cordoned")
	if _, ok := node.Annotations[nodestate.AnnotationOldCRISocket]; !node.Spec.Unschedulable || ok {
		t.Errorf("unschedulable %t, annotations %v", node.Spec.Unschedulable, node.Annotations)
	}
	if _, ok := node.Annotations[nodestate.AnnotationCRISocket]; ok {
		t.Error("the cri-socket annotation was created")
	}
	nothingLeft(t, s, "cordoned")
}

// TestDrainedAgain: after the drain, somebody uncordons the node and a pod lands. It is evicted as the others were; the host is asked only when the
// node is empty again.
func TestDrainedAgain(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	const name = "uncordoned"
	h := hollow.New(t, s, name)
	seen := "the cutover was not asked for"
	h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
		pods, err := s.Client().CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + name})
		seen = fmt.Sprintf("unschedulable %t, %d pods, error %v", getNode(t, s, name).Spec.Unschedulable, len(pods.Items), err)
		h.Succeed(spec)
	}
	observer := &recorder{}
	observer.onStage = func(stage Stage) {
		if stage != StageCutover {
			return
		}
		patch := []byte(`{"spec":{"unschedulable":null}}`)
		if _, err := s.Client().CoreV1().Nodes().Patch(context.Background(), name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Error(err)
		}
		createPod(t, s, name, "landed")
	}
	report, err := newRollout(s, observer).Switch(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if want := "unschedulable true, 0 pods, error <nil>"; seen != want {
		t.Errorf("when the host was asked: %s, want %s", seen, want)
	}
	if !observer.said("the node was uncordoned after its drain: draining it again") || !observer.said("pod default/landed is gone") {
		t.Error("the second drain was not reported")
	}
	if node := getNode(t, s, name); node.Spec.Unschedulable || report.OutOfService <= 0 {
		t.Errorf("unschedulable %t, out of service for %s", node.Spec.Unschedulable, report.OutOfService)
	}
}

// TestAutoscalersAreKeptOff: a node out of service looks like one that nobody needs. What keeps autoscalers from removing it goes afterwards,
// unless somebody else had set it.
func TestAutoscalersAreKeptOff(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	ours, theirs := nodestate.AutoscalerAnnotations()[0], nodestate.AutoscalerAnnotations()[1]
	for _, test := range []struct {
		name    string
		outcome func(*hollow.Node, protocol.Spec)
	}{
		{"autoscaled-done", (*hollow.Node).Succeed},
		{"autoscaled-undone", func(h *hollow.Node, spec protocol.Spec) {
			h.Result(spec, protocol.Result{Outcome: protocol.OutcomeRolledBack, Message: "the kubelet does not start"})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := hollow.New(t, s, test.name, func(node *corev1.Node) { node.Annotations[theirs] = "true" })
			var during map[string]string
			h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
				during = getNode(t, s, test.name).Annotations
				test.outcome(h, spec)
			}
			_, _ = newRollout(s, &recorder{}).Switch(t.Context(), test.name) // how it ends is tested elsewhere
			if during[ours] != "true" || during[theirs] != "true" {
				t.Errorf("during the cutover the node's annotations are %v", during)
			}
			after := getNode(t, s, test.name)
			if _, there := after.Annotations[ours]; there || after.Annotations[theirs] != "true" || after.Annotations[nodestate.AnnotationProtected] != "" || after.Spec.Unschedulable {
				t.Errorf("afterwards: unschedulable %t, annotations %v", after.Spec.Unschedulable, after.Annotations)
			}
		})
	}
}

// TestNodeClockSteps: the node's clock is set while its runtime changes, so that its first heartbeat afterwards is no later than its last.
func TestNodeClockSteps(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	for name, clock := range map[string]time.Duration{"clock-back": -time.Hour, "clock-ahead": 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hollow.New(t, s, name).Clock = clock
			report, err := newRollout(s, &recorder{}).Switch(t.Context(), name)
			if err != nil || report.To != containerdVersion {
				t.Errorf("%+v, %v", report, err)
			}
			nothingLeft(t, s, name)
		})
	}
}
