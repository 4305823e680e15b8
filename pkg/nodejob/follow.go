package nodejob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

const (
	// silence ends a log stream that says nothing: its other end may be gone without a word, as after a power loss. The next
	// stream begins with the first event again.
	silence = 20 * time.Second
	// lookTimeout bounds one look at pod and Job: a connection that hangs must not end the wait for the log.
	lookTimeout = 15 * time.Second
	// jobInterval is how often a Job that has no pod is looked at.
	jobInterval = 2 * time.Second
	// maxUnread is how often the log of a pod that has ended is asked for before its status has to do.
	maxUnread = 10
	// maxLine bounds a line of the log in bytes; events are below 16 KiB.
	maxLine = 64 << 10
	// maxLog bounds one stream of the log, and maxEvents all events of a Follower, in bytes. A run's events are about 1 MiB.
	maxLog    = 32 << 20
	maxEvents = 8 << 20
	// keptLines are how many lines that are no events are kept, to show why an agent failed, and keptLine how much of each, in bytes.
	keptLines = 20
	keptLine  = 500
)

// Follower follows the agent on one node through all phases of a run.
type Follower struct {
	runner *Runner
	// OnEvent gets each event once, in order.
	OnEvent func(protocol.Event)
	// OnNote gets what a person should know while nothing happens: a sentence, said once.
	OnNote func(string)

	seen  int64
	size  int64 // of the events seen, in bytes
	other []string
}

// NewFollower makes a Follower. Its callbacks are called by Follow only.
func (r *Runner) NewFollower(onEvent func(protocol.Event), onNote func(string)) *Follower {
	return &Follower{runner: r, OnEvent: onEvent, OnNote: onNote}
}

// Mode is how much Follow puts up with.
type Mode int

// The modes.
const (
	// InService: node and API server stay, so that what does not answer or does not start is a failure.
	InService Mode = iota
	// Unattended: the host unit works by itself. Once it has begun, the kubelet, the pod and the API server may vanish; only ctx
	// ends the wait.
	Unattended
)

// NoResultError says that a phase's result could not be learnt.
type NoResultError struct {
	Phase protocol.Phase
	// Begun tells whether the agent ran or may have run, and so may have begun with the phase.
	Begun bool
	// Log are the agent's last lines that are no events.
	Log   []string
	Cause error
}

func (e *NoResultError) Error() string { return fmt.Sprintf("%s: %v", e.Phase, e.Cause) }

func (e *NoResultError) Unwrap() error { return e.Cause }

// ErrEnded is the cause of a NoResultError for a pod that has ended well, and whose log holds no result of the phase.
var ErrEnded = errors.New("the pod has ended without a result")

// Follow waits for the result of spec's phase, whose Job is there. begun says that the agent may have begun in an earlier call.
// Every error is a *NoResultError; its cause is a *StartError for a pod that never ran, ErrEnded, or the cause of ctx's end.
func (f *Follower) Follow(ctx context.Context, spec protocol.Spec, mode Mode, begun bool) (*protocol.Result, error) {
	return f.FollowIn(ctx, spec.Phase, spec, mode, begun)
}

// FollowIn is Follow for a phase that the pod of another phase's Job asks for.
func (f *Follower) FollowIn(ctx context.Context, job protocol.Phase, spec protocol.Spec, mode Mode, begun bool) (*protocol.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := f.newFollowed(job, spec, mode, begun)
	result, err := w.run(ctx)
	if err != nil {
		return nil, &NoResultError{Phase: spec.Phase, Begun: w.begun, Log: f.other, Cause: err}
	}
	return result, nil
}

func (f *Follower) newFollowed(job protocol.Phase, spec protocol.Spec, mode Mode, begun bool) *followed {
	host := spec
	host.Phase = job
	return &followed{
		Follower: f, spec: spec, mode: mode, begun: begun, job: JobName(spec.Node, spec.Run, job), labels: jobLabels(host),
		lines: make(chan logLine), start: startWatch{client: f.runner.Client},
		kubelet: kubeletWatch{client: f.runner.Client, node: spec.Node},
		silence: newSilenceWatch(f.runner, spec.Node),
	}
}

// logLine is a line of a pod's log, or with end set the end of a stream: whole, if that was the log's end, empty, if nothing came, and failed, if no
// other stream is worth a try.
type logLine struct {
	text              []byte
	end, whole, empty bool
	failed            error
}

// logTries spreads the requests for a log that has nothing to give, as while a container or its kubelet is down: the first come fast, then one a
// second, and one at once when something has changed.
type logTries struct {
	next  time.Time
	pause time.Duration
}

func (t *logTries) may(now time.Time) bool { return !now.Before(t.next) }

func (t *logTries) ended(now time.Time, empty bool) {
	t.pause = min(max(2*t.pause, pollInterval/2), 2*pollInterval)
	if !empty {
		t.pause = 0
	}
	t.next = now.Add(t.pause)
}

func (t *logTries) hurry() { t.next = time.Time{} }

// followed is one call of Follow.
type followed struct {
	*Follower
	spec   protocol.Spec
	mode   Mode
	job    string
	labels map[string]string
	begun  bool
	start  startWatch
	// kubelet decides in Unattended whether a pod that seems not to have started has not.
	kubelet kubeletWatch
	// bound: there was a pod, whose node may have run it.
	bound bool
	// heard: the agent has said something of the phase. replaced: its pod was deleted, so that the Job makes another one.
	heard, replaced bool
	silence         silenceWatch

	lines   chan logLine
	reading bool
	// tries are when the log may be asked for.
	tries logTries
	// looked is when pod and Job were last asked for, jobLooked when the Job was.
	looked, jobLooked time.Time
	// endStream ends the log stream that is being read.
	endStream context.CancelFunc
	// ended: the pod had ended well before the log was asked for. message is what it then left in its status.
	ended   bool
	message string
	// unread are the tries to read the log of a pod that has ended.
	unread int
	// outage is since when requests fail.
	outage time.Time
	// trouble is the last complaint that Unattended puts up with.
	trouble error
}

func (w *followed) run(ctx context.Context) (*protocol.Result, error) {
	ticker := w.runner.Clock.NewTicker(pollInterval)
	defer ticker.Stop()
	if err := w.look(ctx); err != nil {
		return nil, err
	}
	for {
		var changed <-chan struct{}
		if w.runner.Watch != nil {
			changed = w.runner.Watch.Changed()
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), w.trouble)
		case <-changed:
			w.tries.hurry()
			if err := w.look(ctx); err != nil {
				return nil, err
			}
		case line := <-w.lines:
			if line.failed != nil {
				return nil, line.failed
			}
			if line.end {
				w.reading = false
				w.tries.ended(w.runner.Clock.Now(), line.empty)
				result, err := w.atEnd(line.whole)
				if result != nil || err != nil {
					return result, err
				}
				continue
			}
			result, err := w.take(line.text)
			if result != nil || err != nil {
				return result, err
			}
		case <-ticker.C():
			if w.reading && w.runner.Clock.Now().Sub(w.looked) < calmInterval {
				continue
			}
			if err := w.look(ctx); err != nil {
				return nil, err
			}
		}
	}
}

// take reads one line. It returns the phase's result, also one that an earlier stream has shown.
func (w *followed) take(line []byte) (*protocol.Result, error) {
	event, err := untrusted.Event(line)
	if errors.Is(err, protocol.ErrNotEvent) {
		if text := untrusted.Line(string(line), keptLine); text != "" {
			w.other = append(w.other, text)
			w.other = w.other[max(0, len(w.other)-keptLines):]
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if event.Run != w.spec.Run {
		return nil, nil
	}
	if event.Phase == w.spec.Phase {
		w.begun, w.heard = true, true
	}
	if event.Alive {
		if w.silence.alive(event.Time, w.runner.Clock.Now()) {
			w.OnNote("another pod has found the run: the host is still at work")
		}
		return nil, nil
	}
	if event.Seq > w.seen {
		w.seen = event.Seq
		w.silence.broken(w.runner.Clock.Now())
		if w.size += int64(len(line)); w.size > maxEvents {
			return nil, &untrusted.TooMuchError{What: "what the agent reports", Most: maxEvents}
		}
		w.OnEvent(event)
	}
	if event.Result != nil && event.Phase == w.spec.Phase {
		return event.Result, nil
	}
	return nil, nil
}

// atEnd judges a log that has ended, whole or not. The status of a pod that has ended also holds its result, for logs that cannot be read.
func (w *followed) atEnd(whole bool) (*protocol.Result, error) {
	if !w.ended {
		return nil, nil
	}
	if w.unread++; !whole && w.unread < maxUnread {
		return nil, nil
	}
	for line := range strings.Lines(w.message) {
		if result, err := w.take([]byte(line)); result != nil || err != nil {
			return result, err
		}
	}
	if whole && w.mode == InService {
		return nil, ErrEnded
	}
	return nil, nil
}

// look asks for pod and Job, and begins to read the log where there is one.
func (w *followed) look(following context.Context) error {
	w.looked = w.runner.Clock.Now()
	ctx, cancel := context.WithTimeout(following, lookTimeout)
	defer cancel()
	pod, err := w.runner.Pod(ctx, w.labels)
	if following.Err() != nil {
		return nil // run says why
	}
	if err != nil {
		return w.failed(err)
	}
	if !w.outage.IsZero() {
		w.outage = time.Time{}
		w.silence.broken(w.runner.Clock.Now()) // the outage explains it
		w.OnNote("the API server answers again")
	}
	if pod != nil && HasStarted(pod) {
		w.begun = true // whatever its log says: the host may be at work
	}
	// In service, the container's status is waited for, in Unattended not: kubelets up to 1.26 send five requests a second, two for each pod that changes.
	if pod != nil && !w.reading && (w.begun || w.runner.Watch == nil || w.mode == Unattended) && w.tries.may(w.looked) {
		w.reading, w.ended, w.message = true, pod.Status.Phase == corev1.PodSucceeded, terminationMessage(pod)
		stream, end := context.WithCancel(following)
		w.endStream = end
		go w.read(following, stream, end, pod.Name)
	}
	w.bound = w.bound || pod != nil
	if w.mode == Unattended && w.bound && !w.begun {
		w.kubelet.look(ctx, w.looked)
	}
	if err := w.start.check(ctx, w.runner.Clock.Now(), w.job, pod); err != nil {
		if w.mode == InService && w.heard && !w.replaced && pod != nil {
			w.replaced = true
			w.OnNote(fmt.Sprintf("%v; trying with another pod", err))
			if deleteErr := w.replace(ctx, pod.Name); deleteErr != nil {
				return fmt.Errorf("%w; %w", err, deleteErr)
			}
			return nil
		}
		if err := w.notStarted(ctx, err); err != nil || pod == nil {
			return err
		}
		return w.lookIntoSilence(ctx, pod)
	}
	w.trouble = nil
	w.kubelet.content()
	if pod == nil || pod.Status.Phase == corev1.PodFailed {
		return w.checkJob(ctx)
	}
	return w.lookIntoSilence(ctx, pod)
}

// failed puts up with a failed request for a while.
func (w *followed) failed(err error) error {
	if w.mode == InService && !IsTransient(err) {
		return err
	}
	now := w.runner.Clock.Now()
	if w.outage.IsZero() {
		w.outage = now
		w.OnNote(fmt.Sprintf("the API server does not answer, trying again: %v", withoutURL(err)))
	}
	if w.mode == InService && now.Sub(w.outage) > outagePatience {
		return fmt.Errorf("no answer from the API server for %s: %w", outagePatience, err)
	}
	w.trouble = err
	return nil
}

// checkJob ends the wait for a Job that will have no more pods.
func (w *followed) checkJob(ctx context.Context) error {
	if w.jobLooked.IsZero() {
		w.jobLooked = w.looked // its pod is about to be made
	}
	if w.looked.Sub(w.jobLooked) < jobInterval {
		return nil
	}
	w.jobLooked = w.looked
	job, err := w.runner.Client.BatchV1().Jobs(Namespace).Get(ctx, w.job, metav1.GetOptions{})
	if err != nil {
		return nil //nolint:nilerr // a Job that is gone makes no pod, and the start watch says so
	}
	for _, condition := range job.Status.Conditions {
		if condition.Type != batchv1.JobFailed || condition.Status != corev1.ConditionTrue {
			continue
		}
		return w.notStarted(ctx, &StartError{Reason: condition.Reason, Message: condition.Message, NoPod: true})
	}
	return nil
}

// notStarted judges what says that no agent ran. Unattended believes it only while the kubelet vouches for it; until then, and for
// good if it was away, the host may be at work.
func (w *followed) notStarted(ctx context.Context, err error) error {
	if w.mode == InService {
		return err
	}
	if w.begun {
		w.trouble = err
		return nil
	}
	if w.trouble == nil && w.bound {
		w.OnNote(fmt.Sprintf("%v; waiting for the node's kubelet to confirm that the host has not begun", err))
	}
	w.trouble = err
	if !w.bound || w.kubelet.vouches(ctx, w.runner.Clock.Now()) {
		return err
	}
	if w.kubelet.away {
		w.begun = true
		w.OnNote("the node's kubelet was away after it had got the pod: the host may be at work, waiting for it")
	}
	return nil
}

// replace has the Job make another pod in place of one that cannot be started again, or that says nothing. After a power cut Docker can take the
// sandboxes of before for running ones, and then starts no container in them (seen with Docker 26.1: "is in Running state but has no
// containerd Task").
func (w *followed) replace(ctx context.Context, pod string) error {
	w.start = startWatch{client: w.runner.Client}
	if w.endStream != nil {
		w.endStream()
	}
	err := w.runner.Client.CoreV1().Pods(Namespace).Delete(ctx, pod, atOnce())
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete pod %s, to have another one: %w", pod, err)
	}
	return nil
}

// read sends the lines of one stream of the pod's log, and then its end. cancel ends streamCtx.
func (w *followed) read(ctx, streamCtx context.Context, cancel context.CancelFunc, pod string) {
	defer cancel()
	send := func(line logLine) bool {
		select {
		case w.lines <- line:
			return true
		case <-ctx.Done():
			return false
		}
	}
	end := logLine{end: true, empty: true}
	defer func() { send(end) }()
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()
	stream, err := w.runner.Client.CoreV1().Pods(Namespace).
		GetLogs(pod, &corev1.PodLogOptions{Container: agentName, Follow: true}).Stream(streamCtx)
	if err != nil {
		return // the next look tries again
	}
	defer func() { _ = stream.Close() }()
	err = untrusted.Lines(stream, "the log of pod "+pod, maxLine, maxLog, func(line []byte) bool {
		watchdog.Reset(silence)
		end.empty = false
		return send(logLine{text: bytes.Clone(line)})
	})
	end.whole = err == nil
	if tooMuch := new(untrusted.TooMuchError); errors.As(err, &tooMuch) {
		end.failed = err
	}
}

// withoutURL is what failed in a request, without the request: a selector in it makes a line that nobody can read.
func withoutURL(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		return request.Err
	}
	return err
}
