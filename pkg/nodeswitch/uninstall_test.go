package nodeswitch

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/metadata"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/uninstall"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

func finder(t *testing.T, r *Switcher) uninstall.Finder {
	t.Helper()
	objects, err := metadata.NewForConfig(r.runner.Config)
	if err != nil {
		t.Fatal(err)
	}
	return uninstall.Finder{Client: r.client, Metadata: objects, Clock: r.clock, Holder: r.holder}
}

// TestUninstallRemovesWhatDocsMake: all objects of docs/*.yaml are found and removed, and no other.
func TestUninstallRemovesWhatDocsMake(t *testing.T) {
	t.Parallel()
	versions := []string{withPodSecurityPolicy(), apiserver.Version()}
	for _, version := range slices.Compact(versions) {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			uninstallsDocs(t, apiserver.Own(t, version))
		})
	}
}

func uninstallsDocs(t *testing.T, s *apiserver.Server) {
	t.Helper()
	files, err := filepath.Glob("../../docs/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	slices.Reverse(files) // rbac.yaml, which has the namespace, before the others
	var ours []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		ours = append(ours, create(t, s, text)...)
	}
	theirs := create(t, s, []byte(`{apiVersion: policy/v1beta1, kind: PodSecurityPolicy, metadata: {name: theirs}, spec: {seLinux: {rule: RunAsAny},
  runAsUser: {rule: RunAsAny}, supplementalGroups: {rule: RunAsAny}, fsGroup: {rule: RunAsAny}}}`))
	isThere := func(path string) bool {
		var object unstructured.Unstructured
		data, err := s.Client().Discovery().RESTClient().Get().AbsPath(path).Do(t.Context()).Raw()
		if err == nil {
			err = object.UnmarshalJSON(data)
		}
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		// What is in the namespace goes with it, by a controller that does not run here.
		return err == nil && object.GetDeletionTimestamp() == nil && object.GetNamespace() != nodejob.Namespace
	}
	r := newRollout(s, &recorder{})
	found, err := finder(t, r).Find(t.Context())
	kind := "validatingadmissionpolicy"
	if apiserver.Before(s.Version, "1.25") {
		kind = "podsecuritypolicy"
	}
	if err != nil || len(found.Notes) > 0 || !slices.ContainsFunc(found.Objects, func(o uninstall.Object) bool { return o.Name == kind+"/kubectl-runtime" }) {
		t.Errorf("%+v, %v", found, err)
	}
	if err := uninstall.Remove(t.Context(), found, func(uninstall.Object) {}); err != nil {
		t.Error(err)
	}
	for _, path := range ours {
		if isThere(path) {
			t.Errorf("%s is left", path)
		}
	}
	if len(theirs) > 0 && !isThere(theirs[0]) {
		t.Error("somebody else's policy was removed")
	}
	if found, err := finder(t, r).Find(t.Context()); err != nil || len(found.Objects) > 1 { // the namespace, which its controller would end
		t.Errorf("%+v, %v", found, err)
	}
	// Who may list nothing loses nothing where the server has no such kind.
	r.runner.Config = s.User(t, "lists-nothing")
	found, err = finder(t, r).Find(t.Context())
	notes := fmt.Sprint(found.Notes)
	if err != nil || !strings.Contains(notes, "you may not list clusterroles") || strings.Contains(notes, "podsecuritypolicies") != apiserver.Before(s.Version, "1.25") {
		t.Errorf("%+v, %v", found, err)
	}
}

// uninstalls removes all that the runs before left.
func uninstalls(t *testing.T, s *apiserver.Server, r *Switcher) {
	t.Helper()
	ctx := t.Context()
	found, err := finder(t, r).Find(ctx)
	if err != nil || len(found.Open) > 0 {
		t.Fatalf("%+v, %v", found, err)
	}
	var names []string
	for _, object := range found.Objects {
		names = append(names, object.Name)
	}
	if want := []string{"node/ends", "namespace/" + nodejob.Namespace}; !slices.Equal(names, want) {
		t.Errorf("found %v, want %v", names, want)
	}
	foreign, err := s.Client().CoreV1().Pods(nodejob.Namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "foreign"},
		Spec: corev1.PodSpec{AutomountServiceAccountToken: ptr.To(false), Containers: []corev1.Container{{
			Name: "c", Image: "a", SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: ptr.To(false), RunAsNonRoot: ptr.To(true), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
		}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The namespace stays, and what is ours in it does not.
	ours := metav1.ObjectMeta{Name: "ours", Labels: nodejob.Labels()}
	if _, err := s.Client().CoordinationV1().Leases(nodejob.Namespace).Create(ctx, &coordinationv1.Lease{ObjectMeta: ours}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client().RbacV1().Roles(nodejob.Namespace).Create(ctx, &rbacv1.Role{ObjectMeta: ours}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if found, err = finder(t, r).Find(ctx); err != nil || !strings.Contains(strings.Join(found.Notes, ""), "pod foreign in it") {
		t.Errorf("somebody else's pod would go: %+v, %v", found, err)
	}
	names = nil
	for _, object := range found.Objects {
		names = append(names, object.Name)
	}
	if want := []string{"node/ends", "lease/ours", "role/ours"}; !slices.Equal(names, want) {
		t.Errorf("found %v, want %v", names, want)
	}
	if err := s.Client().CoreV1().Pods(nodejob.Namespace).Delete(ctx, foreign.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
		t.Fatal(err)
	}
	if found, err = finder(t, r).Find(ctx); err != nil {
		t.Fatal(err)
	}
	if err := uninstall.Remove(ctx, found, func(uninstall.Object) {}); err != nil {
		t.Error(err)
	}
	for name := range getNode(t, s, "ends").Annotations {
		if strings.HasPrefix(name, "kubectl-runtime.dev/") {
			t.Errorf("annotation %s is left", name)
		}
	}
	namespace, err := s.Client().CoreV1().Namespaces().Get(ctx, nodejob.Namespace, metav1.GetOptions{})
	if err == nil && namespace.DeletionTimestamp == nil || err != nil && !apierrors.IsNotFound(err) {
		t.Errorf("the namespace is left: %v", err)
	}
}
