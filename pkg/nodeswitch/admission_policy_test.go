package nodeswitch

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/access"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// TestAdmissionPolicy: with docs/admission-policy.yaml, who may create pods everywhere cannot do so in the program's namespace, also while that is open to
// privileged pods; the roles of docs/rbac.yaml need nothing else.
func TestAdmissionPolicy(t *testing.T) {
	t.Parallel()
	s := apiserver.Own(t, apiserver.Newest())
	keepOpen(t, s)
	policy, err := os.ReadFile("../../docs/admission-policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if paths := create(t, s, policy); len(paths) != 2 {
		t.Fatalf("made %q", paths)
	}
	editor, err := kubernetes.NewForConfig(s.User(t, "editor", apiserver.Allow("", "pods,pods/exec,pods/attach,pods/ephemeralcontainers", "*"), apiserver.Allow("batch", "jobs", "*")))
	if err != nil {
		t.Fatal(err)
	}
	const node = "policed"
	h := hollow.New(t, s, node)
	ctx := t.Context()
	spec := corev1.PodSpec{
		NodeName: "elsewhere", RestartPolicy: corev1.RestartPolicyNever, AutomountServiceAccountToken: ptr.To(false),
		Containers: []corev1.Container{{Name: "c", Image: "i", SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)}}},
	}
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	}
	const words = "only users who may patch namespace kubectl-runtime"
	denied := func(err error) bool { return err != nil && strings.Contains(err.Error(), words) }
	createPod := func(namespace string) error {
		_, err := editor.CoreV1().Pods(namespace).Create(ctx, pod("probe"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	if !waitFor(func() bool { return denied(createPod(nodejob.Namespace)) }) {
		t.Fatal(createPod(nodejob.Namespace))
	}
	if err := createPod("default"); err != nil {
		t.Errorf("in another namespace: %v", err)
	}
	ours, err := s.Client().CoreV1().Pods(nodejob.Namespace).Create(ctx, pod("ours"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]func() error{
		"create a Job": func() error {
			job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "j"}, Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: spec}}}
			_, err := editor.BatchV1().Jobs(nodejob.Namespace).Create(ctx, job, metav1.CreateOptions{})
			return err
		},
		"change an image": func() error {
			changed := ours.DeepCopy()
			changed.ResourceVersion, changed.Spec.Containers[0].Image = "", "evil"
			_, err := editor.CoreV1().Pods(nodejob.Namespace).Update(ctx, changed, metav1.UpdateOptions{})
			return err
		},
		"add a container": func() error {
			changed := ours.DeepCopy()
			changed.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e", Image: "evil"}}}
			_, err := editor.CoreV1().Pods(nodejob.Namespace).UpdateEphemeralContainers(ctx, "ours", changed, metav1.UpdateOptions{})
			return err
		},
		"run a command": func() error {
			return editor.CoreV1().RESTClient().Post().Namespace(nodejob.Namespace).Resource("pods").Name("ours").SubResource("exec").
				Param("command", "sh").Param("stdout", "true").Do(ctx).Error()
		},
	} {
		if err := try(); !denied(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.Client().CoreV1().Pods(nodejob.Namespace).Delete(ctx, "ours", metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
		t.Fatal(err)
	}

	config := s.Admin()
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:kube-system:job-controller"}
	controller, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	h.Controller.Store(controller)
	for _, command := range []string{"plan-hosts", "switch", "rollback"} {
		role := access.Roles()[slices.IndexFunc(access.Roles(), func(role access.Role) bool { return role.Command == command })]
		r := asRole(t, s, role, &recorder{})
		err := map[string]func(context.Context) error{
			"plan-hosts": func(ctx context.Context) error { _, err := r.LookAtHost(ctx, node); return err },
			"switch": func(ctx context.Context) error {
				report, err := r.Switch(ctx, node)
				if err == nil && strings.Contains(strings.Join(report.Warnings, ";"), "exec") {
					t.Errorf("warnings %q", report.Warnings)
				}
				return err
			},
			"rollback": func(ctx context.Context) error { _, err := r.Rollback(ctx, node); return err },
		}[command](ctx)
		if err != nil {
			t.Errorf("%s: %v", command, err)
		}
	}
}
