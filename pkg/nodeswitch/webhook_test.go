package nodeswitch

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// webhook is a validating webhook on pods and Jobs that belong to a node.
type webhook struct {
	// deny returns why a request is denied, or "". gone: the webhook's pod is not there any more; hangs: it does not answer.
	deny        func(*admissionv1.AdmissionRequest) string
	gone, hangs atomic.Bool
}

func (w *webhook) ServeHTTP(out http.ResponseWriter, in *http.Request) {
	var review admissionv1.AdmissionReview
	err := json.NewDecoder(in.Body).Decode(&review)
	if w.hangs.Load() {
		<-in.Context().Done()
		return
	}
	if err != nil || w.gone.Load() {
		panic(http.ErrAbortHandler) // the connection ends without an answer
	}
	review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	if why := w.deny(review.Request); why != "" {
		review.Response.Allowed, review.Response.Result = false, &metav1.Status{Message: why}
	}
	_ = json.NewEncoder(out).Encode(review)
}

// newWebhook has the API server ask a webhook about each pod and Job of a node.
func newWebhook(t *testing.T, s *apiserver.Server, node string, deny func(*admissionv1.AdmissionRequest) string) *webhook {
	t.Helper()
	w := &webhook{deny: deny}
	host := httptest.NewTLSServer(w)
	t.Cleanup(host.Close)
	ctx, api := context.Background(), s.Client().AdmissionregistrationV1().ValidatingWebhookConfigurations()
	name := node + ".webhook.example"
	_, err := api.Create(ctx, &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: name, ObjectSelector: ofNode(node), Rules: podsAndJobs(), ClientConfig: calls(host),
			SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
			FailurePolicy: ptr.To(admissionregistrationv1.Fail), TimeoutSeconds: ptr.To[int32](30),
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := api.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	w.gone.Store(true)
	awaitDenial(t, s, node, name)
	w.gone.Store(false)
	return w
}

// podsAndJobs are a webhook's rules.
func podsAndJobs() []admissionregistrationv1.RuleWithOperations {
	rule := func(group, resource string) admissionregistrationv1.RuleWithOperations {
		return admissionregistrationv1.RuleWithOperations{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{group}, APIVersions: []string{"v1"}, Resources: []string{resource}},
		}
	}
	return []admissionregistrationv1.RuleWithOperations{rule("", "pods"), rule("batch", "jobs")}
}

// calls is how an API server reaches a webhook.
func calls(host *httptest.Server) admissionregistrationv1.WebhookClientConfig {
	return admissionregistrationv1.WebhookClientConfig{
		URL: ptr.To(host.URL), CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: host.Certificate().Raw}),
	}
}

func allow(*admissionv1.AdmissionRequest) string { return "" }

// TestRewrittenImages: a webhook gives pods another image than they ask for. The agent is asked to bring the one that it has, and the Job is found
// again.
func TestRewrittenImages(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	const node, mirror = "rewritten", "mirror.example/agent:1"
	host := httptest.NewTLSServer(http.HandlerFunc(func(out http.ResponseWriter, in *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(in.Body).Decode(&review); err != nil {
			panic(http.ErrAbortHandler)
		}
		path := map[string]string{"Job": "/spec/template/spec/containers/0/image", "Pod": "/spec/containers/0/image"}[review.Request.Kind.Kind]
		review.Response = &admissionv1.AdmissionResponse{
			UID: review.Request.UID, Allowed: true, PatchType: ptr.To(admissionv1.PatchTypeJSONPatch),
			Patch: []byte(fmt.Sprintf(`[{"op":"replace","path":%q,"value":%q}]`, path, mirror)),
		}
		_ = json.NewEncoder(out).Encode(review)
	}))
	t.Cleanup(host.Close)
	ctx, api := context.Background(), s.Client().AdmissionregistrationV1().MutatingWebhookConfigurations()
	name := node + ".webhook.example"
	_, err := api.Create(ctx, &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: name, ObjectSelector: ofNode(node), Rules: podsAndJobs(), ClientConfig: calls(host),
			SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := api.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", GenerateName: "probe-", Labels: nodejob.NodeLabels(node)},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "other"}}},
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		got, err := s.Client().CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && got.Spec.Containers[0].Image == mirror {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the webhook is not called: %v", err)
		}
	}
	h := hollow.New(t, s, node)
	h.Script[protocol.PhasePrepare] = func(h *hollow.Node, spec protocol.Spec) {
		if spec.Image != mirror {
			t.Errorf("the agent is to bring %s", spec.Image)
		}
		h.Succeed(spec)
	}
	if _, err := newRollout(s, &recorder{}).Switch(t.Context(), node); err != nil {
		t.Error(err)
	}
	nothingLeft(t, s, node)
}

// TestWebhookDenies: as a policy that denies, a webhook refuses the switch by its name; so does one that cannot be called.
func TestWebhookDenies(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	for name, deny := range map[string]func(*admissionv1.AdmissionRequest) string{
		"denied-job": func(r *admissionv1.AdmissionRequest) string {
			return map[string]string{"Job": "no Jobs here"}[r.Kind.Kind]
		},
		"denied-canary": func(r *admissionv1.AdmissionRequest) string {
			return map[bool]string{true: "no Jobs here"}[strings.HasPrefix(r.Name, "runtime-canary-")]
		},
	} {
		h := hollow.New(t, s, name)
		newWebhook(t, s, name, deny)
		_, err := newRollout(s, &recorder{}).Switch(t.Context(), name)
		wantUntouched(t, s, h, err, "no Jobs here", name+".webhook.example")
		nothingLeft(t, s, name)
	}
	h := hollow.New(t, s, "uncallable")
	newWebhook(t, s, "uncallable", allow).gone.Store(true)
	_, err := quickly(newRollout(s, &recorder{})).Switch(t.Context(), "uncallable")
	wantUntouched(t, s, h, err, "the cluster does not admit", "failed calling webhook", "uncallable.webhook.example")
	nothingLeft(t, s, "uncallable")
}

// TestWebhookOnTheNode: the only pod of a webhook was on the node that is drained. No pod can be created until it is back, which is no fault of the
// node and must not keep it out of service.
func TestWebhookOnTheNode(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	for _, test := range []struct {
		name string
		set  func(*webhook)
		// jobless: the cutover's Job is gone when the verification begins, so that this would need one of its own.
		jobless bool
	}{
		{"webhook-gone", func(w *webhook) { w.gone.Store(true) }, false},
		{"webhook-hangs", func(w *webhook) { w.hangs.Store(true) }, false},
		{"webhook-denies", func(w *webhook) {
			w.deny = func(*admissionv1.AdmissionRequest) string { return "the quota is used up" }
		}, false},
		{"webhook-jobless", func(w *webhook) { w.gone.Store(true) }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := hollow.New(t, s, test.name)
			w := newWebhook(t, s, test.name, allow)
			h.OldAgent = test.jobless
			h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
				test.set(w)
				h.Succeed(spec)
			}
			observer := &recorder{}
			report, err := newRollout(s, observer).Switch(t.Context(), test.name)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := observer.stages(), "claim prepare drain cutover verify uncordon"; got != want {
				t.Errorf("stages %q, want %q", got, want)
			}
			if !strings.Contains(fmt.Sprint(report.Warnings), "the canary pod was not run, which does not count against the node: the cluster does not admit the canary pod") {
				t.Errorf("warnings %q", report.Warnings)
			}
			if got := strings.Contains(fmt.Sprint(report.Warnings), "the agent has not looked at the host once more"); got != test.jobless {
				t.Errorf("warnings %q", report.Warnings)
			}
			if limit := 30 * time.Second; report.OutOfService > limit && !test.jobless {
				t.Errorf("out of service for %s", report.OutOfService)
			}
			w.gone.Store(false)
			w.hangs.Store(false)
			nothingLeft(t, s, test.name)
		})
	}
}
