package nodejob

import (
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/clock"
)

// TestPodSecurityReadsOldLabels: Pod Security may judge a pod by the namespace's labels of a moment ago. A refusal that stays is reported, and one
// of another plugin at once.
func TestPodSecurityReadsOldLabels(t *testing.T) {
	for _, test := range []struct {
		name, words string
		refusals    int // of the first requests
		admitted    bool
		requests    int
	}{
		{"old labels", `pods "a" is forbidden: violates PodSecurity "restricted:latest": hostPID`, 2, true, 3},
		{"refused for good", `pods "a" is forbidden: violates PodSecurity "restricted:latest": hostPID`, 1000, false, podSecurityTries},
		{"a quota", `pods "a" is forbidden: exceeded quota: quota`, 2, false, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			client, requests := fake.NewClientset(), 0
			client.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
				if requests++; requests > test.refusals {
					return false, nil, nil
				}
				return true, nil, apierrors.NewForbidden(corev1.Resource("pods"), "a", errors.New(test.words))
			})
			r := &Runner{Client: client, Clock: hurried{}}
			_, err := r.TryPod(t.Context(), "the pod", &corev1.Pod{})
			var refused *AdmissionError
			if (err == nil) != test.admitted || !test.admitted && !errors.As(err, &refused) {
				t.Errorf("got %v, want admitted %t", err, test.admitted)
			}
			if requests != test.requests {
				t.Errorf("got %d requests, want %d", requests, test.requests)
			}
		})
	}
}

// hurried is a clock whose timers fire at once.
type hurried struct{ clock.RealClock }

func (hurried) NewTimer(time.Duration) clock.Timer { return clock.RealClock{}.NewTimer(0) }
