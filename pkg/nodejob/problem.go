package nodejob

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/paging"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// How long a pod may be in a state before that is a failure. All are below the minute in which a user wants to know.
const (
	// pullPatience lets a kubelet try a second time: a registry may be away for a moment.
	pullPatience = 20 * time.Second
	// crashPatience lets a container that cannot be made or that ends at once try a few times.
	crashPatience = 30 * time.Second
	// refusedPatience is for a pod that is refused: the Job controller tries again after 1, 2, 4 s and so on, and a webhook may be away for a moment.
	refusedPatience = 20 * time.Second
	// eventInterval is how often events are looked for meanwhile.
	eventInterval = 5 * time.Second
	// startPatience is for everything before the container: admission, volumes, the sandbox.
	startPatience = 50 * time.Second
	// pullingPatience is for a kubelet that is pulling the image and has not failed.
	pullingPatience = 10 * time.Minute
)

// StartError says why a pod does not run.
type StartError struct {
	// Reason is the kubelet's or the controller's word: ErrImagePull, CrashLoopBackOff, FailedCreate; "NotStarted" without one.
	Reason  string
	Message string
	// Image is set if the image is the cause.
	Image string
	// NoPod: the Job controller has made no pod, in which no node has a part.
	NoPod bool
}

func (e *StartError) Error() string {
	e = &StartError{Reason: untrusted.Line(e.Reason, maxWords), Message: untrusted.Line(e.Message, maxReason), Image: untrusted.Line(e.Image, maxWords)}
	if e.Image != "" {
		return fmt.Sprintf("image %s cannot be pulled: %s: %s", e.Image, e.Reason, e.Message)
	}
	if e.Message == "" {
		return "pod does not start: " + e.Reason
	}
	return fmt.Sprintf("pod does not start: %s: %s", e.Reason, e.Message)
}

// FailedCreate is the Job controller's word for a pod that is refused (pkg/controller, FailedCreatePodReason).
const FailedCreate = "FailedCreate"

// maxReason bounds what an error repeats of a kubelet's words, in bytes.
const maxReason = 2 << 10

// trouble is what a pod's status complains of at one moment.
type trouble struct {
	reason, message string
	image           bool
	// patience is how long it may last.
	patience time.Duration
}

// troubleOf judges a pod's status. It returns nil for a pod that runs, has run, or is on its way.
func troubleOf(pod *corev1.Pod) *trouble {
	if pod.Status.Phase == corev1.PodFailed {
		// The kubelet's own refusals: Evicted, OutOfmemory, NodeAffinity, AppArmor.
		if pod.Status.Reason != "" {
			return &trouble{reason: pod.Status.Reason, message: pod.Status.Message}
		}
		return nil
	}
	for _, status := range pod.Status.ContainerStatuses {
		waiting := status.State.Waiting
		if waiting == nil {
			continue
		}
		switch waiting.Reason {
		case "ErrImageNeverPull", "InvalidImageName":
			return &trouble{reason: waiting.Reason, message: waiting.Message, image: true}
		case "ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed":
			return &trouble{reason: waiting.Reason, message: waiting.Message, image: true, patience: pullPatience}
		case "CrashLoopBackOff":
			return &trouble{reason: waiting.Reason, message: lastWords(status, waiting.Message), patience: crashPatience}
		case "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError", "PostStartHookError":
			return &trouble{reason: waiting.Reason, message: waiting.Message, patience: crashPatience}
		}
	}
	return nil
}

// lastWords is what a container that ended left behind.
func lastWords(status corev1.ContainerStatus, fallback string) string {
	last := status.LastTerminationState.Terminated
	if last == nil {
		return fallback
	}
	text := fmt.Sprintf("exit code %d", last.ExitCode)
	if last.Reason != "" {
		text = last.Reason + ", " + text
	}
	if last.Message != "" {
		text += ": " + strings.TrimSpace(last.Message)
	}
	return text
}

// HasStarted reports whether the pod's container has ever run.
func HasStarted(pod *corev1.Pod) bool {
	for _, status := range pod.Status.ContainerStatuses {
		if status.State.Running != nil || status.State.Terminated != nil || status.LastTerminationState.Terminated != nil || status.RestartCount > 0 {
			return true
		}
	}
	return false
}

// startWatch decides when a pod that has not started is one that never will.
type startWatch struct {
	client kubernetes.Interface
	began  time.Time
	// asked is when events were last looked for.
	asked time.Time
	// troubled is since when the pod complains of the same kind of trouble.
	troubled time.Time
	image    bool
	// pullError is the kubelet's last word on the pull: while it backs off it only says that it does.
	pullError string
}

// check returns a *StartError once there is no more hope. Pod is nil while there is none; owner is the object whose events tell
// why.
func (w *startWatch) check(ctx context.Context, now time.Time, owner string, pod *corev1.Pod) error {
	if w.began.IsZero() {
		w.began = now
	}
	if pod == nil {
		return w.checkNoPod(ctx, now, owner)
	}
	found := troubleOf(pod)
	if found == nil {
		w.troubled = time.Time{}
		if HasStarted(pod) {
			w.began = now
			return nil
		}
		return w.checkPending(ctx, now, pod)
	}
	if found.image && found.reason == "ErrImagePull" {
		w.pullError = found.message
	}
	if w.troubled.IsZero() || w.image != found.image {
		w.troubled, w.image = now, found.image
	}
	if now.Sub(w.troubled) < found.patience {
		return nil
	}
	err := &StartError{Reason: found.reason, Message: found.message}
	if found.image {
		err.Image = cmp.Or(agentImage(&pod.Spec), pod.Spec.Containers[0].Image)
		if w.pullError != "" {
			err.Message = w.pullError
		} else if event := w.lastEvent(ctx, pod.Name, "Failed"); event != nil {
			err.Message = event.Message
		}
	}
	return err
}

// checkNoPod waits for the Job controller. Quotas and admission refuse its pods, which only its events tell.
func (w *startWatch) checkNoPod(ctx context.Context, now time.Time, owner string) error {
	waited := now.Sub(w.began)
	if waited < startPatience && (waited < refusedPatience || now.Sub(w.asked) < eventInterval) {
		return nil
	}
	w.asked = now
	event := w.lastEvent(ctx, owner, "")
	switch {
	case event != nil && (waited >= startPatience || event.Reason == FailedCreate):
		return &StartError{Reason: event.Reason, Message: event.Message, NoPod: true}
	case w.isSuspended(ctx, owner):
		return &StartError{
			Reason: "Suspended", NoPod: true,
			Message: fmt.Sprintf("job %s is suspended and has no pod; a queue for Jobs, such as Kueue, does that: exempt namespace %s from it", owner, Namespace),
		}
	case waited < startPatience:
		return nil
	}
	return &StartError{Reason: "NotStarted", Message: fmt.Sprintf("no pod was created within %s: is the controller manager running?", startPatience), NoPod: true}
}

// isSuspended reports whether a Job is held back on purpose.
func (w *startWatch) isSuspended(ctx context.Context, job string) bool {
	found, err := w.client.BatchV1().Jobs(Namespace).Get(ctx, job, metav1.GetOptions{})
	return err == nil && ptr.Deref(found.Spec.Suspend, false)
}

func (w *startWatch) checkPending(ctx context.Context, now time.Time, pod *corev1.Pod) error {
	waited := now.Sub(w.began)
	if waited < startPatience {
		return nil
	}
	if event := w.lastEvent(ctx, pod.Name, ""); event != nil {
		return &StartError{Reason: event.Reason, Message: event.Message}
	}
	if waited < pullingPatience && w.isPulling(ctx, pod.Name) {
		return nil
	}
	message := fmt.Sprintf("it is %s after %s", pod.Status.Phase, waited.Round(time.Second))
	for _, status := range pod.Status.ContainerStatuses {
		if status.State.Waiting != nil {
			message += ", " + status.State.Waiting.Reason
		}
	}
	return &StartError{Reason: "NotStarted", Message: message}
}

// lastEvent is the newest warning about an object, of one reason if reason is not empty. Not being allowed to list events only
// makes an error poorer.
func (w *startWatch) lastEvent(ctx context.Context, object, reason string) *corev1.Event {
	events := w.events(ctx, object)
	for i := range events {
		if events[i].Type == corev1.EventTypeWarning && (reason == "" || events[i].Reason == reason && strings.Contains(events[i].Message, "pull")) {
			return &events[i]
		}
	}
	return nil
}

func (w *startWatch) isPulling(ctx context.Context, pod string) bool {
	events := w.events(ctx, pod)
	return len(events) > 0 && events[0].Reason == "Pulling"
}

// maxEventsSeen is how many events of an object are looked at: the API server gives them in no order of time, and a kubelet can make any number of them.
const maxEventsSeen = 1000

// events lists an object's events, newest first.
func (w *startWatch) events(ctx context.Context, object string) []corev1.Event {
	var events []corev1.Event
	only := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("involvedObject.name", object).String()}
	err := paging.Each(ctx, w.client.CoreV1().Events(Namespace).List, only, func(event *corev1.Event) bool {
		events = append(events, *event)
		return len(events) < maxEventsSeen
	})
	if err != nil {
		return nil
	}
	slices.SortStableFunc(events, func(a, b corev1.Event) int { return eventTime(&b).Compare(eventTime(&a)) })
	return events
}

func eventTime(event *corev1.Event) time.Time {
	switch {
	case event.Series != nil:
		return event.Series.LastObservedTime.Time
	case !event.LastTimestamp.IsZero():
		return event.LastTimestamp.Time
	default:
		return event.EventTime.Time
	}
}
