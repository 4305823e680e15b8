package nodeswitch

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/access"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// create creates the objects of a YAML text, but for those of kinds that the server does not have, and returns their paths. The Go API has no
// PodSecurityPolicy any more.
func create(t *testing.T, s *apiserver.Server, text []byte) (paths []string) {
	t.Helper()
	plural := map[string]string{
		"Namespace": "namespaces", "PodSecurityPolicy": "podsecuritypolicies", "Role": "roles", "RoleBinding": "rolebindings",
		"ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings",
		"ValidatingAdmissionPolicy": "validatingadmissionpolicies", "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
	}
	for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
		var object unstructured.Unstructured
		if err := yaml.Unmarshal(document, &object.Object); err != nil {
			t.Fatal(err)
		}
		if object.Object == nil { // a comment
			continue
		}
		path := "/apis/" + object.GetAPIVersion()
		if object.GetAPIVersion() == "v1" {
			path = "/api/v1"
		}
		if object.GetNamespace() != "" {
			path += "/namespaces/" + object.GetNamespace()
		}
		path += "/" + plural[object.GetKind()]
		data, err := object.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		err = s.Client().Discovery().RESTClient().Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body(data).Do(t.Context()).Error()
		if apierrors.IsNotFound(err) && object.GetNamespace() == "" {
			continue
		}
		if err != nil {
			t.Fatalf("create %s: %v", object.GetKind(), err)
		}
		paths = append(paths, path+"/"+object.GetName())
	}
	return paths
}

// withPodSecurityPolicy is the version of an API server that has PodSecurityPolicies: the one that is tested, if it does.
func withPodSecurityPolicy() string {
	if version := apiserver.Version(); apiserver.Before(version, "1.25") {
		return version
	}
	return "1.24"
}

// TestPodSecurityPolicy: a cluster of before 1.25 with PodSecurityPolicy on. It lets in what docs/psp.yaml is for, whoever creates it.
func TestPodSecurityPolicy(t *testing.T) {
	t.Parallel()
	s := apiserver.Own(t, withPodSecurityPolicy(), "--enable-admission-plugins=PodSecurityPolicy")
	named := func(err error) {
		t.Helper()
		failed := wantError(t, err, OutcomeRefused, "")
		if !strings.Contains(failed.Hint, "PodSecurityPolicy is on") || !strings.Contains(failed.Hint, "docs/psp.yaml") {
			t.Errorf("%v: hint %q", err, failed.Hint)
		}
	}
	h := hollow.New(t, s, "psp-none")
	_, err := newRollout(s, &recorder{}).Switch(t.Context(), "psp-none")
	wantUntouched(t, s, h, err, "no providers available")
	named(err)

	create(t, s, []byte(`{apiVersion: policy/v1beta1, kind: PodSecurityPolicy, metadata: {name: restricted}, spec: {volumes: [emptyDir], seLinux: {rule: RunAsAny},
  runAsUser: {rule: RunAsAny}, supplementalGroups: {rule: RunAsAny}, fsGroup: {rule: RunAsAny}}}`))
	h = hollow.New(t, s, "psp-restricted")
	_, err = newRollout(s, &recorder{}).Switch(t.Context(), "psp-restricted")
	wantUntouched(t, s, h, err, "unable to", "ost network is not allowed")
	named(err)

	// A policy that the administrator may use is not the Job controller's.
	policy, err := os.ReadFile("../../docs/psp.yaml")
	if err != nil {
		t.Fatal(err)
	}
	policy = policy[bytes.Index(policy, []byte("apiVersion:")):]
	unbound, bindings, _ := bytes.Cut(policy, []byte("\n---\n"))
	create(t, s, unbound)
	config := s.Admin()
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:kube-system:job-controller"}
	controller, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	const node = "psp-allowed"
	h = hollow.New(t, s, node)
	h.Controller.Store(controller)
	_, err = newRollout(s, &recorder{}).Switch(t.Context(), node)
	wantError(t, err, OutcomeRefused, "FailedCreate")
	named(err)
	if getNode(t, s, node).Spec.Unschedulable {
		t.Error("the node is cordoned")
	}
	nothingLeft(t, s, node)

	// Who has the rights of docs/rbac.yaml and no policy of their own needs nothing but docs/psp.yaml.
	create(t, s, bindings)
	for _, command := range []string{"switch", "rollback"} {
		role := access.Roles()[slices.IndexFunc(access.Roles(), func(role access.Role) bool { return role.Command == command })]
		r := asRole(t, s, role, &recorder{})
		r.options.Pod.ServiceAccount = "default" // as the admission plugin that is off in these tests would fill in
		run := map[string]func() (*Report, error){
			"switch": func() (*Report, error) { return r.Switch(t.Context(), node) }, "rollback": func() (*Report, error) { return r.Rollback(t.Context(), node) },
		}[command]
		report, err := run()
		if err != nil || strings.Contains(strings.Join(report.Warnings, ";"), "canary") {
			t.Errorf("%s: warnings %q, %v", command, report.Warnings, err)
		}
		nothingLeft(t, s, node)
	}
}
