package nodejob

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

var (
	server apiserver.Shared
	update = flag.Bool("update", false, "rewrite the golden files")
)

func TestMain(m *testing.M) { os.Exit(server.Main(m)) }

func testSpec() protocol.Spec {
	return protocol.Spec{
		Version: protocol.Version, Run: "20240131-120000-abcde", Node: "node-1.example.com", Phase: protocol.PhaseCutover,
		Image: "registry.example/agent:1", CutoverSeconds: 300, Images: []string{"registry.example/web:1"},
	}
}

func testJob(t *testing.T, spec protocol.Spec) *batchv1.Job {
	t.Helper()
	job, err := Job(Params{Spec: spec, PullPolicy: corev1.PullIfNotPresent})
	if err != nil {
		t.Fatal(err)
	}
	return job
}

func waitingJob(t *testing.T, spec protocol.Spec) *batchv1.Job {
	t.Helper()
	job, err := Job(Params{Spec: spec, PullPolicy: corev1.PullIfNotPresent, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	return job
}

func TestManifests(t *testing.T) {
	look := testSpec()
	look.Phase = protocol.PhasePlan
	for name, object := range map[string]any{
		"job.yaml": testJob(t, testSpec()),
		"evidence.yaml": EvidencePod(EvidenceParams{
			Node: "node-1.example.com", Run: "20240131-120000-abcde", Image: "registry.example/agent:1", PullPolicy: corev1.PullIfNotPresent,
		}),
		"look.yaml":    testJob(t, look),
		"canary.yaml":  Canary(CanaryParams{Node: "node-1.example.com", Run: "20240131-120000-abcde", Image: "registry.example/agent:1", PullPolicy: corev1.PullIfNotPresent}),
		"waiting.yaml": waitingJob(t, testSpec()),
		"private.yaml": privateJob(t),
	} {
		got, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("%v: run the test with -update and look at the diff", err)
		}
		if string(got) != string(want) {
			t.Errorf("%s differs; run the test with -update and look at the diff:\n%s", name, got)
		}
	}
}

// demanding are PodOptions with all there is.
func demanding() PodOptions {
	return PodOptions{PullSecrets: []string{"one", "two"}, ServiceAccount: "agents", PriorityClass: "important"}
}

func privateJob(t *testing.T) *batchv1.Job {
	job, err := Job(Params{Spec: testSpec(), PullPolicy: corev1.PullIfNotPresent, Image: "registry.example/agent@sha256:1234", Pod: demanding()})
	if err != nil {
		t.Fatal(err)
	}
	return job
}

// TestPodOptions: what a cluster demands holds for each pod; the canary runs as applications do, and has no priority.
func TestPodOptions(t *testing.T) {
	canary, evidence := Canary(CanaryParams{Pod: demanding()}).Spec, EvidencePod(EvidenceParams{Pod: demanding()}).Spec
	for name, spec := range map[string]corev1.PodSpec{"job": privateJob(t).Spec.Template.Spec, "canary": canary, "evidence": evidence} {
		priority := map[bool]string{true: "", false: "important"}[name == "canary"]
		if len(spec.ImagePullSecrets) != 2 || spec.ServiceAccountName != "agents" || spec.PriorityClassName != priority || *spec.AutomountServiceAccountToken {
			t.Errorf("%s: %v, %q, %q", name, spec.ImagePullSecrets, spec.ServiceAccountName, spec.PriorityClassName)
		}
	}
}

func TestJobRefusesABadSpec(t *testing.T) {
	spec := testSpec()
	spec.Run = "Not A Run"
	if _, err := Job(Params{Spec: spec}); err == nil {
		t.Error("a bad spec passes")
	}
}

func TestJobName(t *testing.T) {
	name := JobName("a", "b", protocol.PhasePrepare)
	if name != JobName("a", "b", protocol.PhasePrepare) {
		t.Error("the name is not the same twice")
	}
	for _, other := range []string{
		JobName("ab", "", protocol.PhasePrepare), JobName("a", "b", protocol.PhaseCutover), JobName("a", "c", protocol.PhasePrepare),
	} {
		if other == name {
			t.Errorf("%s is the name of two Jobs", name)
		}
	}
}

// TestServerTakesTheManifests has a real API server validate and default them.
func TestServerTakesTheManifests(t *testing.T) {
	s := server.Get(t)
	createNamespace(t, s)
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}
	if _, err := s.Client().BatchV1().Jobs(Namespace).Create(t.Context(), testJob(t, testSpec()), dry); err != nil {
		t.Error(err)
	}
	if _, err := s.Client().CoreV1().Pods(Namespace).Create(t.Context(), Canary(CanaryParams{Node: "n", Run: "r", Image: "i"}), dry); err != nil {
		t.Error(err)
	}
}

func createNamespace(t *testing.T, s *apiserver.Server) {
	t.Helper()
	_, err := s.Client().CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: Namespace}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// TestEnsure replaces a Job only where it cannot tell a result any more.
func TestEnsure(t *testing.T) {
	s := server.Get(t)
	createNamespace(t, s)
	r := &Runner{Client: s.Client(), Clock: clock.RealClock{}}
	jobs := s.Client().BatchV1().Jobs(Namespace)
	for _, test := range []struct {
		name     string
		change   func(*testing.T, *batchv1.Job)
		image    string
		waits    bool               // the one that is there
		admit    func(*batchv1.Job) // what a webhook did to the one that is there
		replaced bool
	}{
		{name: "running", change: func(*testing.T, *batchv1.Job) {}},
		{name: "another image", change: func(*testing.T, *batchv1.Job) {}, image: "registry.example/agent:2", replaced: true},
		{name: "rewritten by a webhook", change: func(*testing.T, *batchv1.Job) {}, admit: func(job *batchv1.Job) {
			containers := job.Spec.Template.Spec.Containers
			containers[0].Image = "mirror.example/" + containers[0].Image
			job.Spec.Template.Spec.Containers = append([]corev1.Container{{Name: "sidecar", Image: "sidecar"}}, containers...)
		}},
		{name: "of an earlier version", change: func(*testing.T, *batchv1.Job) {}, admit: func(job *batchv1.Job) { job.Annotations = nil }},
		{name: "of an earlier version with another image", change: func(*testing.T, *batchv1.Job) {}, admit: func(job *batchv1.Job) { job.Annotations = nil }, image: "registry.example/agent:2", replaced: true},
		{name: "waiting", change: func(*testing.T, *batchv1.Job) {}, waits: true, replaced: true},
		{name: "failed", change: func(t *testing.T, job *batchv1.Job) { end(t, s, job, batchv1.JobFailed) }, replaced: true},
		{name: "complete without a pod", change: func(t *testing.T, job *batchv1.Job) { end(t, s, job, batchv1.JobComplete) }, replaced: true},
		{name: "complete with its pod", change: func(t *testing.T, job *batchv1.Job) {
			end(t, s, job, batchv1.JobComplete)
			pod := &corev1.Pod{ObjectMeta: job.Spec.Template.ObjectMeta, Spec: job.Spec.Template.Spec}
			pod.Name = "its-pod"
			if _, err := s.Client().CoreV1().Pods(Namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := testSpec()
			spec.Run = strings.ReplaceAll(test.name, " ", "-")
			job := testJob(t, spec)
			if test.waits {
				job = waitingJob(t, spec)
			}
			if test.admit != nil {
				test.admit(job)
			}
			if err := r.Ensure(t.Context(), job); err != nil {
				t.Fatal(err)
			}
			before, err := jobs.Get(t.Context(), job.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			test.change(t, before)
			if test.image != "" {
				spec.Image = test.image
			}
			if err := r.Ensure(t.Context(), testJob(t, spec)); err != nil {
				t.Fatal(err)
			}
			after, err := jobs.Get(t.Context(), job.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if replaced := after.UID != before.UID; replaced != test.replaced {
				t.Errorf("replaced: %t, want %t", replaced, test.replaced)
			}
		})
	}
	// Remove takes the Jobs of one node only.
	other := testSpec()
	other.Node = "other"
	if err := r.Ensure(t.Context(), testJob(t, other)); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(t.Context(), testSpec().Node); err != nil {
		t.Fatal(err)
	}
	list, err := jobs.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 || list.Items[0].Name != JobName("other", other.Run, other.Phase) {
		t.Errorf("left: %v", list.Items)
	}
	if err := r.Remove(t.Context(), "other", protocol.PhasePrepare); err != nil {
		t.Fatal(err)
	}
	if _, err := jobs.Get(t.Context(), list.Items[0].Name, metav1.GetOptions{}); err != nil {
		t.Errorf("a Job of another phase was removed: %v", err)
	}
	if err := r.Remove(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
}

func end(t *testing.T, s *apiserver.Server, job *batchv1.Job, kind batchv1.JobConditionType) {
	t.Helper()
	now := metav1.Now()
	job = job.DeepCopy()
	job.Status.StartTime = &now
	conditions := []batchv1.JobConditionType{batchv1.JobFailureTarget, kind}
	if kind == batchv1.JobComplete {
		job.Status.CompletionTime = &now
		job.Status.Succeeded = 1
		conditions[0] = batchv1.JobSuccessCriteriaMet
	}
	for _, condition := range conditions {
		job.Status.Conditions = append(job.Status.Conditions, batchv1.JobCondition{Type: condition, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	if _, err := s.Client().BatchV1().Jobs(Namespace).UpdateStatus(t.Context(), job, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func waiting(reason, message string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "pod"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Image: "registry.example/agent:1"}}},
		Status: corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}},
		}}},
	}
}

// TestStartWatch goes through what a pod looks like, second by second.
func TestStartWatch(t *testing.T) {
	s := server.Get(t)
	createNamespace(t, s)
	crashed := waiting("CrashLoopBackOff", "back-off 10s")
	crashed.Status.ContainerStatuses[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", Message: "exec format error\n"}
	refused := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "OutOfmemory", Message: "not enough"}}
	running := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}}}
	type look struct {
		at  time.Duration
		pod *corev1.Pod
	}
	for _, test := range []struct {
		name  string
		event *corev1.Event
		// suspended: there is a Job, which is suspended.
		suspended bool
		looks     []look
		want      string
	}{
		{name: "runs", looks: []look{{0, nil}, {time.Second, waiting("ContainerCreating", "")}, {2 * time.Second, running}, {time.Hour, running}}},
		{name: "a pull that fails once", looks: []look{{0, waiting("ErrImagePull", "timeout")}, {10 * time.Second, waiting("ContainerCreating", "")}, {15 * time.Second, running}}},
		{
			name: "a pull that fails", looks: []look{{0, waiting("ErrImagePull", "manifest unknown")}, {12 * time.Second, waiting("ImagePullBackOff", "Back-off pulling image")}, {21 * time.Second, waiting("ImagePullBackOff", "Back-off pulling image")}},
			want: "image registry.example/agent:1 cannot be pulled: ImagePullBackOff: manifest unknown",
		},
		{
			name: "a pull whose failure only the events tell", event: &corev1.Event{Type: "Warning", Reason: "Failed", Message: "Failed to pull image: no such host"},
			looks: []look{{0, waiting("ImagePullBackOff", "Back-off pulling image")}, {21 * time.Second, waiting("ImagePullBackOff", "Back-off pulling image")}},
			want:  "Failed to pull image: no such host",
		},
		{name: "never pull", looks: []look{{0, waiting("ErrImageNeverPull", "not present")}}, want: "ErrImageNeverPull: not present"},
		{name: "invalid name", looks: []look{{0, waiting("InvalidImageName", "couldn't parse")}}, want: "InvalidImageName"},
		{name: "crashes", looks: []look{{0, crashed}, {31 * time.Second, crashed}}, want: "CrashLoopBackOff: Error, exit code 1: exec format error"},
		{name: "refused by the kubelet", looks: []look{{0, refused}}, want: "OutOfmemory: not enough"},
		{name: "no pod", looks: []look{{0, nil}, {49 * time.Second, nil}, {51 * time.Second, nil}}, want: "controller manager"},
		{name: "no pod for a reason", event: &corev1.Event{Type: "Warning", Reason: "FailedCreate", Message: "exceeded quota"}, looks: []look{{0, nil}, {51 * time.Second, nil}}, want: "FailedCreate: exceeded quota"},
		{name: "suspended", suspended: true, looks: []look{{0, nil}, {19 * time.Second, nil}, {21 * time.Second, nil}}, want: "is suspended and has no pod; a queue for Jobs, such as Kueue"},
		{
			name: "no sandbox", event: &corev1.Event{Type: "Warning", Reason: "FailedCreatePodSandBox", Message: "cni plugin not initialized"},
			looks: []look{{0, waiting("ContainerCreating", "")}, {51 * time.Second, waiting("ContainerCreating", "")}}, want: "FailedCreatePodSandBox: cni plugin",
		},
		{name: "pulls for long", event: &corev1.Event{Type: "Normal", Reason: "Pulling", Message: "Pulling image"}, looks: []look{{0, waiting("ContainerCreating", "")}, {2 * time.Minute, waiting("ContainerCreating", "")}}},
		{name: "hangs", looks: []look{{0, waiting("ContainerCreating", "")}, {51 * time.Second, waiting("ContainerCreating", "")}}, want: "it is Pending after 51s, ContainerCreating"},
	} {
		t.Run(test.name, func(t *testing.T) {
			object := "object-" + strings.ReplaceAll(test.name, " ", "-")
			if event := test.event; event != nil {
				event.Name, event.LastTimestamp = object, metav1.Now()
				event.InvolvedObject = corev1.ObjectReference{Namespace: Namespace, Name: object}
				if _, err := s.Client().CoreV1().Events(Namespace).Create(t.Context(), event, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if test.suspended {
				spec := testSpec()
				spec.Run = "suspended"
				job := testJob(t, spec)
				job.Name, job.Spec.Suspend = object, ptr.To(true)
				created, err := s.Client().BatchV1().Jobs(Namespace).Create(t.Context(), job, metav1.CreateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if created.Spec.Suspend == nil {
					t.Skipf("Kubernetes %s suspends no Jobs", s.Version)
				}
			}
			watch := startWatch{client: s.Client()}
			start := time.Now()
			for i, look := range test.looks {
				if look.pod != nil {
					look.pod.Name = object
				}
				err := watch.check(t.Context(), start.Add(look.at), object, look.pod)
				last := i == len(test.looks)-1
				var failed *StartError
				switch {
				case last && test.want != "":
					if !errors.As(err, &failed) || !strings.Contains(err.Error(), test.want) {
						t.Errorf("error %v, want %q", err, test.want)
					}
				case err != nil:
					t.Errorf("after %s: %v", look.at, err)
				}
			}
		})
	}
}

func TestParseCanary(t *testing.T) {
	log := "starting\n{\"other\":1}\n{\"canary\":{\"checks\":[{\"name\":\"dns\",\"ok\":false,\"message\":\"no such host\"},{\"name\":\"volume\",\"ok\":true}]}}\n"
	checks, ok := parseCanary([]byte(log))
	if !ok || len(checks) != 2 || checks[0].OK || !checks[1].OK {
		t.Fatalf("checks %v, %t", checks, ok)
	}
	if got, want := (&CanaryError{Checks: checks}).Error(), "canary: dns: no such host"; got != want {
		t.Errorf("error %q, want %q", got, want)
	}
	for _, log := range []string{"", "{}", `{"canary":{}}`, `{"canary":{"checks":[]}}`, "not json"} {
		if _, ok := parseCanary([]byte(log)); ok {
			t.Errorf("a report was found in %q", log)
		}
	}
}

func TestIsTransient(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for _, test := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{context.Canceled, false},
		{errors.New("connection refused"), true},
		{apierrors.NewForbidden(pods, "x", nil), false},
		{apierrors.NewNotFound(pods, "x"), false},
		{apierrors.NewConflict(pods, "x", nil), true},
		{apierrors.NewInternalError(errors.New("etcd")), true},
		{apierrors.NewServiceUnavailable("starting"), true},
		{apierrors.NewGenericServerResponse(502, "get", pods, "x", "", 0, true), true},
	} {
		if got := IsTransient(test.err); got != test.want {
			t.Errorf("%v: %t", test.err, got)
		}
	}
}

// TestTake keeps events once and in order, whatever a pod's log repeats, and knows a result that it has seen before.
func TestTake(t *testing.T) {
	var seqs []int64
	f := (&Runner{Clock: clock.RealClock{}}).NewFollower(func(e protocol.Event) { seqs = append(seqs, e.Seq) }, func(string) {})
	w := &followed{Follower: f, spec: testSpec()}
	line := func(seq int64, phase protocol.Phase, result bool) string {
		e := protocol.Event{Version: protocol.Version, Seq: seq, Run: w.spec.Run, Phase: phase}
		if result {
			e.Result = &protocol.Result{Outcome: protocol.OutcomeSucceeded}
		}
		data, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	take := func(text string, done bool) {
		t.Helper()
		result, err := w.take([]byte(text))
		if err != nil || (result != nil) != done {
			t.Errorf("result %v, error %v", result, err)
		}
	}
	take(line(1, protocol.PhasePrepare, false), false)
	take(line(2, protocol.PhasePrepare, true), false) // another phase's
	if w.begun {
		t.Error("begun with another phase's events")
	}
	take("panic: something", false)
	take(line(3, protocol.PhaseCutover, false), false)
	take(line(1, protocol.PhasePrepare, false), false)
	take(line(2, protocol.PhasePrepare, true), false)
	take(line(4, protocol.PhaseCutover, true), true)
	take(line(4, protocol.PhaseCutover, true), true)
	if !w.begun || len(seqs) != 4 || seqs[0] != 1 || seqs[3] != 4 {
		t.Errorf("begun %t, events %v", w.begun, seqs)
	}
	if len(f.other) != 1 || f.other[0] != "panic: something" {
		t.Errorf("other lines %q", f.other)
	}
	if _, err := w.take([]byte(`{"v":99,"seq":5}`)); err == nil {
		t.Error("an event of another version passes")
	}
}

// TestTakeHostile has a node that says what no agent says: all of it is cut, and ends in an error once it is too much.
func TestTakeHostile(t *testing.T) {
	var texts []string
	f := (&Runner{Clock: clock.RealClock{}}).NewFollower(func(e protocol.Event) { texts = append(texts, e.Log.Message) }, func(string) {})
	w := f.newFollowed(protocol.PhasePrepare, testSpec(), InService, false)
	for range 100 {
		if result, err := w.take([]byte("\x1b]52;c;ZXZpbA==\a" + strings.Repeat("x", maxLine))); result != nil || err != nil {
			t.Fatal(result, err)
		}
	}
	if text := strings.Join(f.other, ""); len(text) > keptLines*keptLine || strings.Contains(text, "\x1b") {
		t.Errorf("keeps %d bytes, %.50q", len(text), text)
	}
	for run, phase := range map[string]protocol.Phase{w.spec.Run: protocol.PhaseRollback, "another-run": w.spec.Phase} { // nobody asked for these
		line, err := protocol.Event{Version: protocol.Version, Seq: 1, Run: run, Phase: phase, Log: &protocol.Log{}, Result: &protocol.Result{Outcome: protocol.OutcomeSucceeded}}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if result, err := w.take(line); result != nil || err != nil || w.begun {
			t.Errorf("%s of %s: %v, %v, begun %t", phase, run, result, err, w.begun)
		}
	}
	if _, err := w.take([]byte(`{"v":1,"seq":2,"run":"x/../../escaped"}`)); err == nil {
		t.Error("an odd run passes")
	}
	texts = nil
	var err error
	for seq := int64(2); err == nil && seq < 1e6; seq++ {
		_, err = w.take(fmt.Appendf(nil, `{"v":1,"seq":%d,"run":%q,"log":{"message":"\u001b[31m%s"}}`, seq, w.spec.Run, strings.Repeat("y", 4<<10)))
	}
	if tooMuch := new(untrusted.TooMuchError); !errors.As(err, &tooMuch) || len(texts) > 3000 {
		t.Errorf("%d events, then %v", len(texts), err)
	}
	if text := texts[0]; !strings.HasPrefix(text, `\u001b[31my`) || len(text) > 2<<10 {
		t.Errorf("%d bytes, %.50q", len(text), text)
	}
}
