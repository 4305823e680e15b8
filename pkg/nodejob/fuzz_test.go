package nodejob

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// wantLine: a text is one line of at most a number of bytes that a terminal shows as it is.
func wantLine(t *testing.T, text string, most int) {
	t.Helper()
	if len(text) > most || untrusted.Visible(text) != text || strings.ContainsAny(text, "\n\t") {
		t.Errorf("%d bytes: %.300q", len(text), text)
	}
}

// FuzzParseCanary: whatever a canary's log holds, its checks are few and can be shown, and the Node's annotation can hold all their names as they are.
func FuzzParseCanary(f *testing.F) {
	f.Add([]byte("hello\n" + `{"canary":{"checks":[{"name":"dns","ok":true},{"name":"\u001b","message":"a\nb"}]}}`))
	f.Add([]byte(`{"canary":{"checks":[` + strings.Repeat(`{},`, 100) + `{}]}}`))
	f.Add([]byte(`{"canary":{"checks":[{"name":", a, b"},{"name":","},{"name":"` + strings.Repeat("long ", 100) + `"}]}}`))
	f.Add([]byte(`{"canary":{"checks":[{"name":"` + strings.Join(words(30), `"},{"name":"`) + `"}]}}`))
	f.Fuzz(func(t *testing.T, log []byte) {
		checks, ok := parseCanary(log)
		if ok != (len(checks) > 0) || len(checks) > nodestate.MaxChecks {
			t.Errorf("%d checks, %t", len(checks), ok)
		}
		names := []string{CheckPod, CheckExec}
		for _, check := range checks {
			wantLine(t, check.Name, maxWords)
			wantLine(t, check.Message, maxReason)
			names = append(names, check.Name)
		}
		node := &corev1.Node{}
		node.Annotations = map[string]string{nodestate.AnnotationFailedBefore: strings.Join(nodestate.Names(names), ",")}
		slices.Sort(names)
		if known := nodestate.Read(node).FailedBefore; !slices.Equal(known, slices.Compact(names)) {
			t.Errorf("the annotation holds %q, not %q", known, names)
		}
	})
}

func words(count int) []string {
	list := make([]string, count)
	for i := range list {
		list[i] = fmt.Sprintf("check-%d", i)
	}
	return list
}

// FuzzExitError: whatever a node says of how a command ended, it is an error or none, and can be shown with what was printed.
func FuzzExitError(f *testing.F) {
	f.Add([]byte(`{"status":"Success"}`), []byte("x"))
	f.Add([]byte(`{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}`), []byte("\x1b[2J"))
	f.Add([]byte(`{"status":"Failure","message":"\u001b\n"}`), bytes.Repeat([]byte("x\n"), 5000))
	f.Fuzz(func(t *testing.T, status, printed []byte) {
		if err := exitError(status); err != nil {
			wantLine(t, complaint(err, printed).Error(), 2*maxReason+len(": "))
		}
	})
}

// FuzzStartError: whatever a kubelet says of a pod, the error can be shown.
func FuzzStartError(f *testing.F) {
	f.Add("Evicted", "Failed", "low on memory", int32(1))
	f.Add("ErrImagePull", "Pending", "\x1b]52;c;x\x07\nhint: x", int32(-1))
	f.Add("CrashLoopBackOff", "Running", strings.Repeat("x", 10000), int32(137))
	f.Fuzz(func(t *testing.T, reason, phase, message string, code int32) {
		pod := &corev1.Pod{}
		pod.Status.Phase, pod.Status.Reason, pod.Status.Message = corev1.PodPhase(phase), reason, message
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
			State:                corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}},
			LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, Message: message}},
		}}
		if found := troubleOf(pod); found != nil {
			err := &StartError{Reason: found.reason, Message: found.message}
			if found.image {
				err.Image = message
			}
			wantLine(t, err.Error(), 2*maxReason)
		}
	})
}
