package nodejob

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

const (
	// silencePatience is how long a pod that runs may say nothing. It says every protocol.AliveEvery that it is alive.
	silencePatience = 4 * protocol.AliveEvery
	// maxFreshPods bounds the pods that are made because of a silence. The Job controller waits longer before each of them: 10, 20, 40 s.
	maxFreshPods = 3
	// maxAlive bounds the signs of life that are remembered.
	maxAlive = 1000
)

// silenceWatch decides when a pod that had started says nothing for so long that its container may be dead without its kubelet knowing: Docker takes a
// container for running whose shim was killed while Docker was not looking, and after a power cut a kubelet can leave a container that was only
// created for ever (kubelet 1.23 with Docker 20.10).
type silenceWatch struct {
	runner   *Runner
	node     string
	patience time.Duration

	// last is when the agent last said something new, or since when the pod runs.
	last time.Time
	// seen are the signs of life so far: each stream begins with the log's first line again.
	seen map[time.Time]bool
	// fresh are the pods that were made, asked says that the last of them has not said anything yet.
	fresh int
	asked bool
	told  bool
	// kubelet says whether the node is there to run a pod, in Unattended.
	kubelet *kubeletWatch
}

func newSilenceWatch(r *Runner, node string) silenceWatch {
	patience := r.SilencePatience
	if patience == 0 {
		patience = silencePatience
	}
	return silenceWatch{runner: r, node: node, patience: patience, seen: map[time.Time]bool{}}
}

// broken notes that the agent has said something new, or that there is a reason why it could not be heard.
func (w *silenceWatch) broken(now time.Time) { w.last, w.asked, w.kubelet = now, false, nil }

// alive takes a sign of life. It returns true for the first one of a pod that was made because of a silence.
func (w *silenceWatch) alive(at, now time.Time) bool {
	if w.seen[at] {
		return false
	}
	if len(w.seen) == maxAlive {
		clear(w.seen)
	}
	w.seen[at] = true
	asked := w.asked
	w.broken(now)
	return asked
}

// isOver reports whether the pod has been silent for too long. Each time, it is given twice as long. In Unattended the kubelet has to have been
// there meanwhile: while it is stopped, no pod can say anything.
func (w *silenceWatch) isOver(ctx context.Context, mode Mode) bool {
	now := w.runner.Clock.Now()
	if w.last.IsZero() {
		w.last = now
	}
	if now.Sub(w.last) < w.patience<<w.fresh {
		return false
	}
	if mode == InService {
		return true
	}
	if w.kubelet == nil {
		w.kubelet = &kubeletWatch{client: w.runner.Client, node: w.node}
	}
	w.kubelet.look(ctx, now)
	if w.kubelet.away {
		w.kubelet = nil // watched from its return on
		return false
	}
	return w.kubelet.vouches(ctx, now)
}

// lookIntoSilence replaces a pod that has not ended and has said nothing for too long. The next one finds the run by itself, and reports all of it
// from the beginning.
func (w *followed) lookIntoSilence(ctx context.Context, pod *corev1.Pod) error {
	hasEnded := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	mayHaveStarted := HasStarted(pod) || w.mode == Unattended && w.begun
	if hasEnded || !mayHaveStarted || !w.silence.isOver(ctx, w.mode) {
		return nil
	}
	if w.silence.fresh == maxFreshPods {
		if !w.silence.told {
			w.silence.told = true
			w.OnNote(fmt.Sprintf("nothing comes from the agent's pods on node %s, and the log of pod %s cannot be read or is empty; waiting for the result in its status",
				w.spec.Node, pod.Name))
		}
		return nil
	}
	waited := w.runner.Clock.Now().Sub(w.silence.last).Round(time.Second)
	w.OnNote(fmt.Sprintf("pod %s is shown as %s but has said nothing for %s; looking with another pod", pod.Name, pod.Status.Phase, waited))
	if err := w.replace(ctx, pod.Name); err != nil {
		return w.failed(err)
	}
	w.silence.broken(w.runner.Clock.Now())
	w.silence.fresh++
	w.silence.asked = true
	return nil
}

// terminationMessage is what the container of a pod that has ended left in its status.
func terminationMessage(pod *corev1.Pod) string {
	for _, status := range pod.Status.ContainerStatuses {
		if status.Name == agentName && status.State.Terminated != nil {
			return status.State.Terminated.Message
		}
	}
	return ""
}
