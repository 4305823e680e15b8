package plugin

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// podsOfPhases collects this program's pods as the API server has admitted them, by phase, until the test ends.
func podsOfPhases(t *testing.T, s *apiserver.Server) func() map[string][]corev1.Pod {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	events, err := s.Client().CoreV1().Pods(nodejob.Namespace).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	pods := map[string][]corev1.Pod{}
	stopped := make(chan struct{})
	t.Cleanup(func() { cancel(); <-stopped })
	go func() {
		defer close(stopped)
		defer events.Stop()
		for event := range events.ResultChan() {
			if pod, ok := event.Object.(*corev1.Pod); ok {
				mu.Lock()
				phase := pod.Labels[nodejob.LabelPhase]
				pods[phase] = append(pods[phase], *pod)
				mu.Unlock()
			}
		}
	}()
	return func() map[string][]corev1.Pod {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(pods)
	}
}

// TestPodsAreAsTheClusterDemands: image by digest, pull secrets, service account and priority class are those of all pods of all commands.
func TestPodsAreAsTheClusterDemands(t *testing.T) {
	s := apiserver.Own(t, apiserver.Version())
	h := hollow.New(t, s, "demanding")
	s.CreateNodes(t, apiserver.Node("other", hollow.DockerVersion, "v1.23.17"))
	undone := false
	h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
		if !undone { // which has the evidence gathered
			undone = true
			h.Result(spec, protocol.Result{Outcome: protocol.OutcomeRolledBack, FailedStep: "x", Message: "undone"})
			return
		}
		h.Succeed(spec)
	}
	h.OldAgent = true // the verification has a pod of its own
	_, err := s.Client().SchedulingV1().PriorityClasses().Create(t.Context(), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "important"}, Value: 1000}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	seen := podsOfPhases(t, s)
	image := "registry.example:5000/team/agent@sha256:" + strings.Repeat("0123456789abcdef", 4)
	demands := []string{
		"--image=" + image, "--image-pull-secret=one,two", "--service-account=agents", "--priority-class=important", "--image-pull-policy=Always",
		"--kubeconfig=" + apiserver.Kubeconfig(t, s.Admin()),
	}
	t.Chdir(t.TempDir()) // for the evidence
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"plan", "demanding"}, 0}, {[]string{"switch", "demanding", "--yes", "--soak=0s"}, cli.ExitRolledBack},
		{[]string{"switch", "demanding", "--yes", "--soak=0s"}, 0}, {[]string{"rollback", "demanding", "--yes", "--soak=0s"}, 0},
	} {
		if r := call(t.Context(), slices.Concat(c.args, demands)...); r.code != c.code {
			t.Fatalf("%s: exit %d, want %d\n%s%s", c.args, r.code, c.code, r.out, r.errOut)
		}
	}
	want := []string{nodejob.PhaseCanary, "cutover", nodejob.PhaseEvidence, "plan", "prepare", "rollback", "verify"}
	for deadline := time.Now().Add(time.Minute); len(seen()) < len(want) && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
	}
	pods := seen()
	if got := slices.Sorted(maps.Keys(pods)); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("pods of %q, want %q", got, want)
	}
	for phase, list := range pods {
		for _, pod := range list {
			secrets := fmt.Sprint(pod.Spec.ImagePullSecrets)
			priority := "important"
			if phase == nodejob.PhaseCanary { // whose priority is the cluster's default
				priority = ""
			}
			container := pod.Spec.Containers[0]
			if secrets != "[{one} {two}]" || pod.Spec.ServiceAccountName != "agents" || pod.Spec.PriorityClassName != priority || container.Image != image ||
				container.ImagePullPolicy != corev1.PullAlways || *pod.Spec.AutomountServiceAccountToken {
				t.Errorf("%s: secrets %s, service account %q, priority class %q, image %s, %s, token %t", phase, secrets, pod.Spec.ServiceAccountName,
					pod.Spec.PriorityClassName, container.Image, container.ImagePullPolicy, *pod.Spec.AutomountServiceAccountToken)
			}
			if phase == "prepare" && hollow.SpecOf(t, container.Args).Image != image {
				t.Errorf("%s is brought to containerd", hollow.SpecOf(t, container.Args).Image)
			}
		}
	}
}
