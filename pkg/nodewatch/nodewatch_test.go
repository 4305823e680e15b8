package nodewatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

var server apiserver.Shared

func TestMain(m *testing.M) { os.Exit(server.Main(m)) }

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// traffic is what one client asks for, and how its watches are disturbed.
type traffic struct {
	mu       sync.Mutex
	requests []string
	bodies   []io.Closer // of watches
	// answer, if it is set, answers a watch in the server's place; nil lets it pass.
	answer func(request *http.Request) *http.Response
}

func (tr *traffic) client(t *testing.T, s *apiserver.Server) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(apiserver.Transport(s.Admin(), func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(request *http.Request) (*http.Response, error) {
			kind := "read"
			if request.URL.Query().Has("watch") {
				kind = "watch"
			}
			tr.mu.Lock()
			tr.requests = append(tr.requests, kind+" "+request.URL.Path[strings.LastIndex(request.URL.Path, "/")+1:])
			answer := tr.answer
			tr.mu.Unlock()
			if kind == "watch" && answer != nil {
				if response := answer(request); response != nil {
					return response, nil
				}
			}
			response, err := next.RoundTrip(request)
			if err == nil && kind == "watch" {
				tr.mu.Lock()
				tr.bodies = append(tr.bodies, response.Body)
				tr.mu.Unlock()
			}
			return response, err
		})
	}))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (tr *traffic) count() int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return len(tr.requests)
}

func (tr *traffic) setAnswer(answer func(*http.Request) *http.Response) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.answer = answer
}

// breakWatches ends the connections of all watches.
func (tr *traffic) breakWatches() {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, body := range tr.bodies {
		_ = body.Close()
	}
	tr.bodies = nil
}

// start makes a node with its watch.
func start(t *testing.T, s *apiserver.Server, name string) (*Watch, *traffic) {
	t.Helper()
	s.CreateNodes(t, apiserver.Node(name, "docker://20.10.24", "v1.23.17"))
	tr := &traffic{}
	w := New(tr.client(t, s), clock.RealClock{}, name)
	node, err := s.Client().CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.Start(t.Context(), node)
	return w, tr
}

func await(t *testing.T, w *Watch, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 30*time.Second, errors.New("not so in time: "+what))
	defer cancel()
	if err := w.Await(ctx, func() (bool, error) { return is(), nil }); err != nil {
		t.Fatal(err)
	}
}

func createPod(t *testing.T, s *apiserver.Server, node, name string) {
	t.Helper()
	_, err := s.Client().CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "watched"}}, metav1.CreateOptions{})
	if err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	_, err = s.Client().CoreV1().Pods("watched").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{NodeName: node, AutomountServiceAccountToken: ptr.To(false), Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func deletePod(t *testing.T, s *apiserver.Server, name string) {
	t.Helper()
	if err := s.Client().CoreV1().Pods("watched").Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
		t.Fatal(err)
	}
}

func cordon(t *testing.T, s *apiserver.Server, name string) {
	t.Helper()
	_, err := s.Client().CoreV1().Nodes().Patch(t.Context(), name, types.MergePatchType, []byte(`{"spec":{"unschedulable":true}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func podNames(t *testing.T, w *Watch) string {
	t.Helper()
	pods, err := w.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range pods {
		names = append(names, pods[i].Name)
	}
	return strings.Join(names, " ")
}

func isCordoned(t *testing.T, w *Watch) bool {
	t.Helper()
	node, err := w.Node(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return node.Spec.Unschedulable
}

// TestChangesCostNoRequests: one list and two watches, and nothing more for whatever happens.
func TestChangesCostNoRequests(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	createPod(t, s, "calm", "calm-1")
	createPod(t, s, "elsewhere", "calm-elsewhere")
	w, tr := start(t, s, "calm")
	await(t, w, "watched", w.Watched)
	if got := podNames(t, w); got != "calm-1" {
		t.Errorf("pods %q", got)
	}
	createPod(t, s, "calm", "calm-2")
	await(t, w, "a pod comes", func() bool { return strings.Contains(podNames(t, w), "calm-2") })
	deletePod(t, s, "calm-1")
	await(t, w, "a pod goes", func() bool { return podNames(t, w) == "calm-2" })
	cordon(t, s, "calm")
	await(t, w, "the node is cordoned", func() bool { return isCordoned(t, w) })
	if n := tr.count(); n != 3 {
		t.Errorf("%d requests, want 3: %v", n, tr.requests)
	}
}

// TestBrokenWatch: what happens while a watch is down is seen after it.
func TestBrokenWatch(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	createPod(t, s, "broken", "broken-1")
	w, tr := start(t, s, "broken")
	await(t, w, "watched", w.Watched)
	tr.setAnswer(func(*http.Request) *http.Response {
		return status(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
	})
	tr.breakWatches()
	await(t, w, "the end is noticed", func() bool { return !w.Watched() })
	deletePod(t, s, "broken-1")
	cordon(t, s, "broken")
	if got := podNames(t, w); got != "" || !isCordoned(t, w) {
		t.Errorf("without a watch: pods %q, cordoned %t", got, isCordoned(t, w))
	}
	tr.setAnswer(nil)
	await(t, w, "watched again", w.Watched)
	createPod(t, s, "broken", "broken-2")
	await(t, w, "a pod comes", func() bool { return podNames(t, w) == "broken-2" })
	before := tr.count()
	if !isCordoned(t, w) || podNames(t, w) != "broken-2" || tr.count() != before {
		t.Errorf("cordoned %t, pods %q", isCordoned(t, w), podNames(t, w))
	}
}

// TestExpiredWatch: a server that no longer has the events is asked for all objects again.
func TestExpiredWatch(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	w, tr := start(t, s, "expired")
	await(t, w, "watched", w.Watched)
	var mu sync.Mutex
	expired := map[string]bool{}
	tr.setAnswer(func(request *http.Request) *http.Response {
		mu.Lock()
		defer mu.Unlock()
		if expired[request.URL.Path] {
			return nil
		}
		expired[request.URL.Path] = true
		response := status(http.StatusGone, metav1.StatusReasonExpired)
		body, _ := io.ReadAll(response.Body)
		response.StatusCode, response.Body = http.StatusOK, io.NopCloser(strings.NewReader(`{"type":"ERROR","object":`+string(body)+`}`+"\n"))
		return response
	})
	tr.breakWatches()
	await(t, w, "the end is noticed", func() bool { return !w.Watched() })
	createPod(t, s, "expired", "expired-1")
	cordon(t, s, "expired")
	await(t, w, "watched again", w.Watched)
	await(t, w, "all is seen", func() bool { return podNames(t, w) == "expired-1" && isCordoned(t, w) })
	if len(expired) != 2 {
		t.Errorf("watches that expired: %v", expired)
	}
}

// TestForbiddenWatch: who may not watch reads, and asks seldom for the right to watch.
func TestForbiddenWatch(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("forbidden", "docker://20.10.24", "v1.23.17"))
	tr := &traffic{answer: func(*http.Request) *http.Response { return status(http.StatusForbidden, metav1.StatusReasonForbidden) }}
	w := New(tr.client(t, s), clock.RealClock{}, "forbidden")
	w.Start(t.Context(), nil)
	createPod(t, s, "forbidden", "forbidden-1")
	await(t, w, "a pod comes", func() bool { return podNames(t, w) == "forbidden-1" && !isCordoned(t, w) })
	cordon(t, s, "forbidden")
	await(t, w, "the node is cordoned", func() bool { return isCordoned(t, w) })
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if n := strings.Count(strings.Join(tr.requests, ","), "watch "); n != 2 {
		t.Errorf("%d watches, want one for each kind: %v", n, tr.requests)
	}
}

// TestAwaitEnds returns the cause with the last word of look.
func TestAwaitEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause, last := errors.New("enough"), errors.New("not yet")
	w := New(nil, clock.RealClock{}, "nobody")
	err := w.Await(ctx, func() (bool, error) { cancel(cause); return false, last })
	if !errors.Is(err, cause) || !errors.Is(err, last) {
		t.Errorf("error %v", err)
	}
}

func status(code int, reason metav1.StatusReason) *http.Response {
	return &http.Response{
		StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d,"message":"test"}`, reason, code))),
	}
}
