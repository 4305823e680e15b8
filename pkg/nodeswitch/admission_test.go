package nodeswitch

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// wantUntouched checks that a switch was refused before anything was changed, by an error that says all of texts.
func wantUntouched(t *testing.T, s *apiserver.Server, h *hollow.Node, err error, texts ...string) {
	t.Helper()
	failed := wantError(t, err, OutcomeRefused, "nothing was changed")
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
	if failed.Hint == "" {
		t.Error("no hint")
	}
	node := getNode(t, s, h.Name)
	for key := range node.Annotations {
		if strings.HasPrefix(key, nodestate.Prefix) {
			t.Errorf("annotation %s was made", key)
		}
	}
	if len(h.Phases()) > 0 || fmt.Sprint(h.Cordons()) != "[false]" {
		t.Errorf("phases %v, cordons %v", h.Phases(), h.Cordons())
	}
}

// ofNode selects what belongs to a node, so that a policy bothers no other test.
func ofNode(node string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{nodejob.LabelNode: nodejob.NodeLabels(node)[nodejob.LabelNode]}}
}

// createPolicy makes a ValidatingAdmissionPolicy on pods that belong to a node, and waits until it holds.
func createPolicy(t *testing.T, s *apiserver.Server, node, expression, message string) {
	t.Helper()
	ctx, api := context.Background(), s.Client().AdmissionregistrationV1()
	policy := &admissionregistrationv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "policy-" + node},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionregistrationv1.MatchResources{
				ObjectSelector: ofNode(node),
				ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: admissionregistrationv1.RuleWithOperations{
					Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
					Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
				}}},
			},
			Validations: []admissionregistrationv1.Validation{{Expression: expression, Message: message}},
		},
	}
	if _, err := api.ValidatingAdmissionPolicies().Create(ctx, policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := api.ValidatingAdmissionPolicyBindings().Create(ctx, &admissionregistrationv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: policy.Name},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: policy.Name, ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := api.ValidatingAdmissionPolicyBindings().Delete(ctx, policy.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		if err := api.ValidatingAdmissionPolicies().Delete(ctx, policy.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	awaitDenial(t, s, node, policy.Name)
}

// awaitDenial waits until a pod of a node that nothing good can be said of is denied.
func awaitDenial(t *testing.T, s *apiserver.Server, node, text string) {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", GenerateName: "probe-", Labels: nodejob.NodeLabels(node)},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "c", Image: "bad.example/c"}},
			Volumes:    []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}},
		},
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		_, err := s.Client().CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil && strings.Contains(err.Error(), text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not hold: %v", err)
		}
	}
}

// TestPolicies: a policy that denies what a switch needs refuses it by its name while the node serves; one that does not bothers nobody.
func TestPolicies(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	if !serves(t, s, "validatingadmissionpolicies") {
		t.Skipf("Kubernetes %s has no ValidatingAdmissionPolicy", s.Version)
	}
	for _, test := range []struct {
		name, expression, message string
		wants                     []string // none: it passes
	}{
		{"bare-pods", "has(object.metadata.ownerReferences)", "naked pods are not allowed", []string{"the cluster does not admit the canary pod", "policy-bare-pods", "naked pods are not allowed"}},
		{"registries", "object.spec.containers.all(c, c.image.startsWith('good.example/'))", "foreign registry", []string{"policy-registries", "foreign registry"}},
		{"host-paths", "!has(object.spec.volumes) || object.spec.volumes.all(v, !has(v.hostPath))", "no hostPath", []string{"the pod of the agent's Job", "policy-host-paths", "no hostPath"}},
		{"own-registry", "object.spec.containers.all(c, c.image.startsWith('registry.example/'))", "foreign registry", nil},
		{"terminal", "false", "\x1b[31mred", []string{`\u001b[31mred`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := hollow.New(t, s, test.name)
			createPolicy(t, s, test.name, test.expression, test.message)
			_, err := newRollout(s, &recorder{}).Switch(t.Context(), test.name)
			if test.wants == nil {
				if err != nil {
					t.Error(err)
				}
			} else {
				wantUntouched(t, s, h, err, test.wants...)
			}
			nothingLeft(t, s, test.name)
		})
	}
}

// serves reports whether a server has a resource of admissionregistration.k8s.io/v1.
func serves(t *testing.T, s *apiserver.Server, name string) bool {
	t.Helper()
	list, err := s.Client().Discovery().ServerResourcesForGroupVersion(schema.GroupVersion{Group: "admissionregistration.k8s.io", Version: "v1"}.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, resource := range list.APIResources {
		if resource.Name == name {
			return true
		}
	}
	return false
}

// TestFailedBefore: what fails on the old runtime already does not count after the cutover, also where another run resumes the verification;
// what fails on the new one alone does.
func TestFailedBefore(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	denied := nodejob.CanaryCheck{Name: "api-address", Message: "i/o timeout"}
	fine := nodejob.CanaryCheck{Name: "volume", OK: true}
	odd := nodejob.CanaryCheck{Name: strings.Repeat("a, name ", 20), Message: "no"}
	t.Run("default-deny", func(t *testing.T) {
		t.Parallel()
		h := hollow.New(t, s, "default-deny")
		h.ChecksBefore = []nodejob.CanaryCheck{denied, odd, fine}
		h.Checks = h.ChecksBefore
		r := newRollout(s, &recorder{})
		report, err := r.Switch(t.Context(), "default-deny")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"check api-address fails on docker://20.10.24 already", "check api-address fails, as it did before: i/o timeout"} {
			if !strings.Contains(fmt.Sprint(report.Warnings), want) {
				t.Errorf("warnings %q without %q", report.Warnings, want)
			}
		}
		// Nor does it on the way back.
		if _, err := newRollout(s, &recorder{}).Rollback(t.Context(), "default-deny"); err != nil {
			t.Error(err)
		}
		nothingLeft(t, s, "default-deny")
	})
	t.Run("fails-now", func(t *testing.T) {
		t.Parallel()
		h := hollow.New(t, s, "fails-now")
		h.ChecksBefore = []nodejob.CanaryCheck{denied, fine}
		h.Checks = []nodejob.CanaryCheck{denied, {Name: "volume", Message: "read-only"}}
		_, err := newRollout(s, &recorder{}).Switch(t.Context(), "fails-now")
		wantError(t, err, OutcomeRolledBack, "canary: volume: read-only")
		if strings.Contains(err.Error(), "i/o timeout") {
			t.Errorf("error %v", err)
		}
		nothingLeft(t, s, "fails-now")
	})
	t.Run("another-run", func(t *testing.T) {
		t.Parallel()
		h := hollow.New(t, s, "another-run")
		h.ChecksBefore = []nodejob.CanaryCheck{denied, odd, fine}
		h.Checks = h.ChecksBefore
		ctx, cancel := context.WithCancel(t.Context())
		observer := &recorder{onStage: func(stage Stage) {
			if stage == StageVerify {
				cancel()
			}
		}}
		_, err := newRollout(s, observer).Switch(ctx, "another-run")
		wantError(t, err, OutcomeInterrupted, "")
		if report, err := newRollout(s, &recorder{}).Switch(t.Context(), "another-run"); err != nil || !report.Resumed {
			t.Errorf("resumed %t, %v", report.Resumed, err)
		}
		nothingLeft(t, s, "another-run")
	})
	t.Run("never-ran", func(t *testing.T) {
		t.Parallel()
		h := hollow.New(t, s, "never-ran")
		h.CanaryStatus = &corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CreateContainerError", Message: "no such plugin"}}}
		report, err := quickly(newRollout(s, &recorder{})).Switch(t.Context(), "never-ran")
		if err != nil || !strings.Contains(fmt.Sprint(report.Warnings), "check pod fails on docker://20.10.24 already") || !strings.Contains(fmt.Sprint(report.Warnings), "no such plugin") {
			t.Errorf("warnings %q, %v", report.Warnings, err)
		}
		nothingLeft(t, s, "never-ran")
	})
}

// TestCredentialsExpire: while the canary is looked at, the API server does not take the credentials for a while.
func TestCredentialsExpire(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	h := hollow.New(t, s, "credentials-expire")
	var refused atomic.Int32
	r := newRollout(s, &recorder{})
	config := apiserver.Transport(s.Admin(), func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(request *http.Request) (*http.Response, error) {
			if h.IsOn("containerd") && strings.Contains(request.URL.Path, "/pods/runtime-canary-") && request.Method == http.MethodGet && refused.Add(1) <= 5 {
				body := `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}`
				return &http.Response{
					StatusCode: http.StatusUnauthorized, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: request,
				}, nil
			}
			return next.RoundTrip(request)
		})
	})
	withConfig(t, r, config)
	if _, err := r.Switch(t.Context(), "credentials-expire"); err != nil {
		t.Error(err)
	}
	if refused.Load() < 5 {
		t.Errorf("%d requests were refused", refused.Load())
	}
	nothingLeft(t, s, "credentials-expire")
}

// TestNamespaceLimits: limits and quotas of the namespace refuse the switch, or let it pass.
func TestNamespaceLimits(t *testing.T) {
	t.Parallel()
	s := apiserver.Own(t, apiserver.Version())
	keepOpen(t, s)
	ctx, core := context.Background(), s.Client().CoreV1()
	limit := func(item corev1.LimitRangeItem) func() error {
		return func() error {
			item.Type = corev1.LimitTypeContainer
			_, err := core.LimitRanges(nodejob.Namespace).Create(ctx, &corev1.LimitRange{
				ObjectMeta: metav1.ObjectMeta{Name: "limits"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{item}},
			}, metav1.CreateOptions{})
			return err
		}
	}
	quota := func(pods string) func() error {
		return func() error {
			quota, err := core.ResourceQuotas(nodejob.Namespace).Create(ctx, &corev1.ResourceQuota{
				ObjectMeta: metav1.ObjectMeta{Name: "quota"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse(pods)}},
			}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			quota.Status = corev1.ResourceQuotaStatus{Hard: quota.Spec.Hard, Used: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}}
			_, err = core.ResourceQuotas(nodejob.Namespace).UpdateStatus(ctx, quota, metav1.UpdateOptions{})
			return err
		}
	}
	memory := func(size string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(size)}
	}
	for _, test := range []struct {
		name string
		set  func() error
		want string // empty: it passes
	}{
		// Of a limit below the request, servers name the limit or the request, or only what is limited.
		{"limit-max", limit(corev1.LimitRangeItem{Max: memory("16Mi")}), "memory"},
		{"limit-default", limit(corev1.LimitRangeItem{Default: memory("1Gi"), DefaultRequest: memory("100Mi")}), ""},
		{"quota-none", quota("0"), "exceeded quota: quota"},
		{"quota-enough", quota("50"), ""},
	} {
		h := hollow.New(t, s, test.name)
		if err := test.set(); err != nil {
			t.Fatal(err)
		}
		_, err := newRollout(s, &recorder{}).Switch(t.Context(), test.name)
		switch {
		case test.want != "":
			wantUntouched(t, s, h, err, test.want)
		case err != nil:
			t.Errorf("%s: %v", test.name, err)
		}
		nothingLeft(t, s, test.name)
		for _, err := range []error{
			core.LimitRanges(nodejob.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
			core.ResourceQuotas(nodejob.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestRestrictedCluster: Pod Security admission enforces "restricted" in every namespace that has no labels of its own.
func TestRestrictedCluster(t *testing.T) {
	t.Parallel()
	if apiserver.Before(apiserver.Version(), "1.23") {
		t.Skipf("Kubernetes %s has no Pod Security admission", apiserver.Version())
	}
	file := filepath.Join(t.TempDir(), "admission.yaml")
	version := map[bool]string{true: "v1beta1", false: "v1"}[apiserver.Before(apiserver.Version(), "1.25")]
	text := fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/%s
    kind: PodSecurityConfiguration
    defaults: {enforce: restricted, enforce-version: latest}
`, version)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := apiserver.Own(t, apiserver.Version(), "--admission-control-config-file="+file)
	hollow.New(t, s, "restricted")
	if _, err := newRollout(s, &recorder{}).Switch(t.Context(), "restricted"); err != nil {
		t.Error(err)
	}
	nothingLeft(t, s, "restricted")
}
