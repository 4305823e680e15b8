package oldapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
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

const namespace = "default"

// TestOldestIsTested: the constant and the tests' oldest server say the same.
func TestOldestIsTested(t *testing.T) {
	if want := fmt.Sprintf("1.%d", OldestMinor); apiserver.Oldest() != want {
		t.Errorf("the oldest version in tests is %s, supported is %s", apiserver.Oldest(), want)
	}
}

func TestListBudgets(t *testing.T) {
	s := server.Get(t)
	budget := func(name string, selector *metav1.LabelSelector) {
		s.PutBudget(t, &policyv1.PodDisruptionBudget{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromInt32(2)), Selector: selector},
			Status:     policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 1, DisruptionsAllowed: 1, CurrentHealthy: 3, DesiredHealthy: 2, ExpectedPods: 4},
		})
	}
	budget("by-label", &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}})
	budget("empty", &metav1.LabelSelector{})
	list, err := ListBudgets(t.Context(), s.Client(), namespace, metav1.ListOptions{})
	if err != nil || len(list.Items) != 2 {
		t.Fatalf("%d budgets, %v", len(list.Items), err)
	}
	first, status := list.Items[0], list.Items[0].Status
	if first.Name != "by-label" || first.Spec.Selector.MatchLabels["app"] != "web" || first.Spec.MinAvailable.IntValue() != 2 || first.Generation != 1 {
		t.Errorf("budget %+v", first)
	}
	if status.ObservedGeneration != 1 || status.DisruptionsAllowed != 1 || status.CurrentHealthy != 3 || status.DesiredHealthy != 2 || status.ExpectedPods != 4 {
		t.Errorf("status %+v", status)
	}
	// In policy/v1 an empty selector selects all pods, in v1beta1 none.
	_, err = s.Client().PolicyV1().PodDisruptionBudgets(namespace).List(t.Context(), metav1.ListOptions{})
	if selects := list.Items[1].Spec.Selector != nil; selects != (err == nil) {
		t.Errorf("an empty selector selects pods: %t, but policy/v1: %v", selects, err)
	}
	// Chunks work as in v1.
	chunk, err := ListBudgets(t.Context(), s.Client(), namespace, metav1.ListOptions{Limit: 1})
	if err != nil || len(chunk.Items) != 1 || chunk.Continue == "" {
		t.Fatalf("first chunk %+v, %v", chunk, err)
	}
	chunk, err = ListBudgets(t.Context(), s.Client(), namespace, metav1.ListOptions{Limit: 1, Continue: chunk.Continue})
	if err != nil || len(chunk.Items) != 1 || chunk.Items[0].Name != "empty" {
		t.Errorf("second chunk %+v, %v", chunk, err)
	}
}

func TestListCronJobs(t *testing.T) {
	s := server.Get(t)
	job := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "nightly"}}
	job.Spec.Schedule = "@daily"
	job.Spec.JobTemplate.Spec.Template.Spec = corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "backup:1"}}}
	s.PutCronJob(t, job)
	list, err := ListCronJobs(t.Context(), s.Client(), metav1.NamespaceAll, metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Spec.JobTemplate.Spec.Template.Spec.Containers[0].Image != "backup:1" {
		t.Errorf("CronJobs %+v, %v", list, err)
	}
}

// TestEvict: a pod without a node goes at once, unless a budget keeps it; a precondition counts, and a pod that is gone is an error.
func TestEvict(t *testing.T) {
	s := server.Get(t)
	pods := s.Client().CoreV1().Pods(namespace)
	pod, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "evicted", Labels: map[string]string{"app": "evicted"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Status.Phase, pod.Status.Conditions = corev1.PodRunning, []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if _, err := pods.UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	evict := func(uid string) error {
		options := &metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0), Preconditions: metav1.NewUIDPreconditions(uid)}
		return Evict(context.Background(), s.Client(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pod.Name}, DeleteOptions: options})
	}
	s.PutBudget(t, &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "keeps"},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromInt32(1)), Selector: &metav1.LabelSelector{MatchLabels: pod.Labels}},
		Status:     policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 1, CurrentHealthy: 1, DesiredHealthy: 1, ExpectedPods: 1},
	})
	if err := evict(string(pod.UID)); !apierrors.IsTooManyRequests(err) {
		t.Errorf("past a budget: %v", err)
	}
	s.RemoveBudget(t, namespace, "keeps")
	if err := evict("another"); !apierrors.IsConflict(err) {
		t.Errorf("another pod of this name: %v", err)
	}
	if err := evict(string(pod.UID)); err != nil {
		t.Error(err)
	}
	if _, err := pods.Get(t.Context(), pod.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the pod is there: %v", err)
	}
	if err := evict(string(pod.UID)); !apierrors.IsNotFound(err) {
		t.Errorf("a pod that is gone: %v", err)
	}
}

func TestHasReadyEndpoint(t *testing.T) {
	s := server.Get(t)
	want := func(when string, wantReady, wantKnown bool) {
		t.Helper()
		if ready, known, err := HasReadyEndpoint(t.Context(), s.Client(), namespace, "svc"); err != nil || ready != wantReady || known != wantKnown {
			t.Errorf("%s: ready %t, known %t, %v", when, ready, known, err)
		}
	}
	want("nothing", false, false)
	addresses, ports := []corev1.EndpointAddress{{IP: "10.0.0.1"}}, []corev1.EndpointPort{{Port: 53}}
	_, err := s.Client().CoreV1().Endpoints(namespace).Create(t.Context(), &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Name: "svc"}, Subsets: []corev1.EndpointSubset{{Addresses: addresses, Ports: ports}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want("Endpoints alone", true, true)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: "svc-1", Labels: map[string]string{discoveryv1.LabelServiceName: "svc"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}}},
	}
	s.PutEndpointSlice(t, slice)
	want("a slice without a ready one", false, true)
	slice.Endpoints[0].Conditions.Ready = ptr.To(true)
	s.PutEndpointSlice(t, slice)
	want("a slice with a ready one", true, true)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestCheckServer has a real server, which says another version of itself.
func TestCheckServer(t *testing.T) {
	s := server.Get(t)
	if err := CheckServer(t.Context(), s.Client()); err != nil {
		t.Error(err)
	}
	for _, test := range []struct {
		body string
		code int
		want string
	}{
		{`{"gitVersion":"v1.16.15-gke.100"}`, http.StatusOK, "the API server is Kubernetes v1.16.15-gke.100: the oldest that is supported is 1.17"},
		{`{"gitVersion":"v0.21.4"}`, http.StatusOK, "v0.21.4"},
		{`{"gitVersion":"v1.17.0-alpha"}`, http.StatusOK, ""},
		{`{"gitVersion":"v2.0.0"}`, http.StatusOK, ""},
		{`{"gitVersion":"of our own"}`, http.StatusOK, ""},
		{`<html>`, http.StatusOK, ""},
		{`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`, http.StatusForbidden, ""},
		{`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"InternalError","code":500}`, http.StatusInternalServerError, "get server version: "},
	} {
		client, err := kubernetes.NewForConfig(apiserver.Transport(s.Admin(), func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				answer, err := next.RoundTrip(r)
				if err == nil && r.URL.Path == "/version" {
					_ = answer.Body.Close()
					answer.StatusCode, answer.ContentLength = test.code, int64(len(test.body))
					answer.Body = io.NopCloser(bytes.NewBufferString(test.body))
				}
				return answer, err
			})
		}))
		if err != nil {
			t.Fatal(err)
		}
		err = CheckServer(t.Context(), client)
		var old *UnsupportedError
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.body, err)
		}
		if is := errors.As(err, &old); is != (test.code == http.StatusOK && test.want != "") {
			t.Errorf("%s: %v is an UnsupportedError: %t", test.body, err, is)
		}
	}
}
