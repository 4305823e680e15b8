package drain

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

var server apiserver.Shared

func TestMain(m *testing.M) { os.Exit(server.Main(m)) }

type recorder struct {
	mu     sync.Mutex
	lines  []string
	blocks []Block
}

func (r *recorder) add(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, text)
}

func (r *recorder) Evicting(pod *corev1.Pod) { r.add("evicting " + pod.Name) }
func (r *recorder) Gone(pod *corev1.Pod)     { r.add("gone " + pod.Name) }
func (r *recorder) Blocked(block Block) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blocks = append(r.blocks, block)
}

// TestHelper pins what the library's zero values get wrong.
func TestHelper(t *testing.T) {
	d := New(nil, Options{GracePeriodSeconds: PodGrace, Timeout: time.Minute}, nil, time.Now)
	h := d.helper(t.Context(), nil)
	if h.GracePeriodSeconds != -1 {
		t.Errorf("grace period %d: 0 kills at once", h.GracePeriodSeconds)
	}
	if h.EvictErrorRetryDelay != 5*time.Second {
		t.Errorf("retry delay %s: 0 is a hot loop", h.EvictErrorRetryDelay)
	}
	if h.Out == nil || h.ErrOut == nil || h.Ctx == nil {
		t.Error("Out, ErrOut and Ctx must not be nil")
	}
	if !h.IgnoreAllDaemonSets || h.Timeout != time.Minute {
		t.Errorf("helper %+v", h)
	}
}

func pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, Labels: map[string]string{"app": name},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "x", UID: "1", Controller: ptr.To(true)}},
		},
		Spec: corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

// run creates pods on "node" as a kubelet would run them, and kills those that are deleted.
func run(t *testing.T, s *apiserver.Server, pods ...*corev1.Pod) {
	t.Helper()
	// The server makes it a moment after it is ready.
	_, err := s.Client().CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	client := s.Client().CoreV1().Pods("default")
	for _, p := range pods {
		created, err := client.Create(t.Context(), p, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		created.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
		if _, err := client.UpdateStatus(t.Context(), created, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	kill := func(all bool) {
		list, err := client.List(context.Background(), metav1.ListOptions{FieldSelector: "spec.nodeName=node"})
		if err != nil {
			t.Error(err)
			return
		}
		for _, p := range list.Items {
			if p.DeletionTimestamp == nil && !all || p.Annotations["hangs"] != "" && !all {
				continue
			}
			err := client.Delete(context.Background(), p.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
			if err != nil && !apierrors.IsNotFound(err) {
				t.Error(err)
			}
		}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				kill(false)
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
		kill(true)
	})
}

func podNames(t *testing.T, s *apiserver.Server) string {
	t.Helper()
	list, err := s.Client().CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range list.Items {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func emptyDir(p *corev1.Pod) {
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
}

func bare(p *corev1.Pod) { p.OwnerReferences = nil }

func mirror(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }

func TestDrain(t *testing.T) {
	for _, test := range []struct {
		name    string
		options Options
		pods    []*corev1.Pod
		left    string
		errs    []string
	}{
		{name: "controlled", pods: []*corev1.Pod{pod("a"), pod("b")}},
		{name: "own pods stay", options: Options{Keep: map[string]string{"app": "own"}}, pods: []*corev1.Pod{pod("a"), pod("own", bare)}, left: "own"},
		{name: "mirror pods stay", pods: []*corev1.Pod{pod("m", mirror)}, left: "m"},
		{
			name: "refused", pods: []*corev1.Pod{pod("a"), pod("b", bare), pod("c", emptyDir)}, left: "a b c",
			errs: []string{"--delete-emptydir-data", "default/c", "--force", "default/b"},
		},
		{name: "forced", options: Options{Force: true, DeleteEmptyDirData: true}, pods: []*corev1.Pod{pod("a"), pod("b", bare), pod("c", emptyDir)}},
		{name: "own pods stay, selected", options: Options{Keep: map[string]string{"app": "own"}, PodSelector: "app in (a,own)"}, pods: []*corev1.Pod{pod("a"), pod("b"), pod("own", bare)}, left: "b own"},
		{name: "selected", options: Options{PodSelector: "app=a"}, pods: []*corev1.Pod{pod("a"), pod("b")}, left: "b"},
		{name: "deleted", options: Options{DisableEviction: true}, pods: []*corev1.Pod{pod("a")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := server.Get(t)
			run(t, s, test.pods...)
			test.options.GracePeriodSeconds, test.options.Timeout = PodGrace, 20*time.Second
			observer := &recorder{}
			err := New(s.Client(), test.options, observer, time.Now).Drain(t.Context(), "node")
			if (err != nil) != (len(test.errs) > 0) {
				t.Fatalf("error %v", err)
			}
			for _, want := range test.errs {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not name %q", err, want)
				}
			}
			if got := podNames(t, s); got != test.left {
				t.Errorf("left %q, want %q", got, test.left)
			}
			if err == nil && test.left == "" && !test.options.DisableEviction {
				for _, p := range test.pods {
					for _, line := range []string{"evicting " + p.Name, "gone " + p.Name} {
						if !slices.Contains(observer.lines, line) {
							t.Errorf("not told: %s", line)
						}
					}
				}
			}
		})
	}
}

// TestBudget has a real server refuse evictions with 429.
func TestBudget(t *testing.T) {
	s := server.Get(t)
	run(t, s, pod("free"), pod("guarded"), pod("hanging", func(p *corev1.Pod) { p.Annotations = map[string]string{"hangs": "yes"} }))
	for name, app := range map[string]string{"guard": "guarded", "other": "free-not"} {
		s.PutBudget(t, &policyv1.PodDisruptionBudget{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromInt32(2)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
			Status:     policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 1, CurrentHealthy: 1, DesiredHealthy: 2, ExpectedPods: 2},
		})
	}
	observer := &recorder{}
	began := time.Now()
	err := New(s.Client(), Options{GracePeriodSeconds: PodGrace, Timeout: 7 * time.Second}, observer, time.Now).Drain(t.Context(), "node")
	var timeout *TimeoutError
	if !errors.As(err, &timeout) {
		t.Fatalf("error %v is no TimeoutError", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	if len(timeout.Blocked) != 1 || timeout.Blocked[0].Pod != "guarded" || fmt.Sprint(timeout.Blocked[0].Budgets) != "[guard (1 healthy, needs 2)]" {
		t.Errorf("blocked %+v", timeout.Blocked)
	}
	if fmt.Sprint(timeout.Left) != "[default/hanging]" {
		t.Errorf("left %v", timeout.Left)
	}
	if len(observer.blocks) < 2 || !observer.blocks[0].Since.Equal(observer.blocks[len(observer.blocks)-1].Since) {
		t.Errorf("blocks %+v: want two attempts with one beginning", observer.blocks)
	}
	if got := podNames(t, s); got != "guarded hanging" {
		t.Errorf("left %q", got)
	}
}

// TestEndsWithTheLastPod has a pod go 0.3 s after its eviction. A drain that watches the node asks for the pod never, and ends before the library's
// second look, which is a second after the eviction, unless this machine stalls meanwhile.
func TestEndsWithTheLastPod(t *testing.T) {
	s := server.Get(t)
	for try := 1; ; try++ {
		name := fmt.Sprintf("slow-%d", try)
		run(t, s, pod(name, func(p *corev1.Pod) { p.Annotations = map[string]string{"hangs": "yes"} }))
		var looks, evictions atomic.Int32
		var evicted time.Time
		config := apiserver.Transport(s.Admin(), func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				switch {
				case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/pods/"+name):
					looks.Add(1)
				case strings.HasSuffix(r.URL.Path, "/eviction"):
					evictions.Add(1)
					evicted = time.Now()
					time.AfterFunc(300*time.Millisecond, func() {
						_ = s.Client().CoreV1().Pods("default").Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
					})
				}
				return next.RoundTrip(r)
			})
		})
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		observer := &recorder{}
		if err := New(client, Options{GracePeriodSeconds: PodGrace, Timeout: time.Minute}, observer, time.Now).Drain(t.Context(), "node"); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(observer.lines) != fmt.Sprintf("[evicting %s gone %s]", name, name) || evictions.Load() != 1 {
			t.Fatalf("%v, %d evictions", observer.lines, evictions.Load())
		}
		took := time.Since(evicted)
		if looks.Load() == 0 && took < time.Second {
			return
		}
		if try == 5 {
			t.Fatalf("looked at %s %d times, ended after %s", name, looks.Load(), took)
		}
	}
}

func TestInterrupt(t *testing.T) {
	s := server.Get(t)
	run(t, s, pod("hanging", func(p *corev1.Pod) { p.Annotations = map[string]string{"hangs": "yes"} }))
	cause := errors.New("stop it")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(time.Second, func() { cancel(cause) })
	err := New(s.Client(), Options{GracePeriodSeconds: PodGrace, Timeout: time.Minute}, &recorder{}, time.Now).Drain(ctx, "node")
	if !errors.Is(err, cause) {
		t.Errorf("error %v, want the cause", err)
	}
}

// roundTripper is a function as an http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestRequestsFail drops the connection of the first request of a kind, or refuses all of that kind.
func TestRequestsFail(t *testing.T) {
	for _, test := range []struct {
		name, method, path string
		status             int // 0: the connection
		err                string
		noWatch            bool
	}{
		{name: "list", method: http.MethodGet, path: "/pods"},
		{name: "look", method: http.MethodGet, path: "/pods/dropped", noWatch: true},
		{name: "evict", method: http.MethodPost, path: "/pods/dropped/eviction", status: http.StatusInternalServerError},
		{name: "forbidden", method: http.MethodPost, path: "/pods/dropped/eviction", status: http.StatusForbidden, err: "error when evicting"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := server.Get(t)
			run(t, s, pod("dropped"))
			var failed atomic.Int32
			config := apiserver.Transport(s.Admin(), func(next http.RoundTripper) http.RoundTripper {
				return roundTripper(func(r *http.Request) (*http.Response, error) {
					if test.noWatch && r.URL.Query().Has("watch") {
						return &http.Response{StatusCode: http.StatusForbidden, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
					}
					if r.Method != test.method || !strings.HasSuffix(r.URL.Path, test.path) || failed.Add(1) > 1 && test.err == "" {
						return next.RoundTrip(r)
					}
					if test.status == 0 {
						return nil, errors.New("connection reset by peer")
					}
					return &http.Response{StatusCode: test.status, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
				})
			})
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			err = New(client, Options{GracePeriodSeconds: PodGrace, Timeout: time.Minute}, &recorder{}, time.Now).Drain(t.Context(), "node")
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("error %v", err)
			}
			if failed.Load() == 0 || time.Since(began) > 30*time.Second {
				t.Errorf("%d requests failed, took %s", failed.Load(), time.Since(began))
			}
			if left := podNames(t, s); (left == "") != (test.err == "") {
				t.Errorf("left %q", left)
			}
		})
	}
}
