package nodejob

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/oldapi"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

const (
	// canaryTimeout is for sandbox, network and the canary's own checks.
	canaryTimeout = 2 * time.Minute
	// canaryInterval is after what time its log is looked for again, twice that the next time and so on up to maxCanaryInterval: the node is out of
	// service. canaryFollow is how long a log that has no report yet is listened to.
	canaryInterval    = 200 * time.Millisecond
	maxCanaryInterval = time.Second
	canaryFollow      = 5 * time.Second
	// canaryLook is how often its status is, where it is not watched: it only says what keeps the pod from running.
	canaryLook = 2 * time.Second
	// execTimeout is for the command, requestTimeout for one answer of kubelet or API server.
	execTimeout    = 30 * time.Second
	requestTimeout = 5 * time.Second
)

// maxReport bounds the canary's log, a line or two, and maxSummary a kubelet's metrics, 10 KiB for each pod, in bytes.
const (
	maxReport  = 1 << 20
	maxSummary = 32 << 20
)

// readAll reads the answer to a request that the API server passes on to a kubelet.
func readAll(ctx context.Context, request *rest.Request, what string, most int64) ([]byte, error) {
	stream, err := request.Stream(ctx)
	if err != nil {
		return nil, err
	}
	data, err := untrusted.ReadAll(stream, what, most)
	return data, errors.Join(err, stream.Close())
}

// CanaryError says which of the canary's checks failed.
type CanaryError struct {
	Checks []CanaryCheck
}

func (e *CanaryError) Error() string {
	var failed []string
	for _, check := range e.Checks {
		if !check.OK {
			failed = append(failed, check.Name+": "+check.Message)
		}
	}
	return "canary: " + strings.Join(failed, "; ")
}

// execTries is how often a command may fail that the API server passes on.
const execTries = 3

// OutageError is an API server that did not answer until the end of a wait, so that nothing is known of the node.
type OutageError struct{ Cause error }

func (e *OutageError) Error() string { return e.Cause.Error() }

func (e *OutageError) Unwrap() error { return e.Cause }

// Prover runs canaries, and judges a node by them.
type Prover struct{ *Runner }

// Prove runs the canary pod and returns when it has passed. Note gets what could not be checked, or does not count, a sentence each. A check that
// fails is a *CanaryError, a pod that does not run a *StartError, one that the cluster does not let run an *AdmissionError, and an *OutageError says
// that the API server was away. The pod is left to Remove.
func (r Prover) Prove(ctx context.Context, p CanaryParams, note func(string)) error {
	if slices.Contains(p.Known, CheckPod) {
		note("the canary pod is not run, since it did not run before, either")
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, canaryTimeout, fmt.Errorf("no report after %s", canaryTimeout))
	defer cancel()
	pod := Canary(p)
	if p.Started {
		if pod = r.alive(ctx, pod); pod == nil {
			p.Started, p.Attempt = false, p.Attempt+"-again"
			pod = Canary(p)
		}
	}
	if !p.Started {
		var err error
		if pod, err = r.replacePod(ctx, "the canary pod", pod); err != nil {
			return err
		}
	}
	checks, err := r.awaitCanary(ctx, pod, note)
	if err != nil {
		return err
	}
	var counted []CanaryCheck
	for _, check := range failed(checks) {
		if slices.Contains(p.Known, check.Name) {
			note(fmt.Sprintf("the canary's check %s fails, as it did before: %s", check.Name, check.Message))
		} else {
			counted = append(counted, check)
		}
	}
	if len(counted) > 0 {
		return &CanaryError{Checks: counted}
	}
	err = r.exec(ctx, pod, note)
	var outage *OutageError
	switch {
	case err == nil:
		return nil
	case slices.Contains(p.Known, CheckExec) && !errors.As(err, &outage):
		note(fmt.Sprintf("exec into the canary pod fails, as it did before: %s", untrusted.Line(err.Error(), maxReason)))
		return nil
	default:
		return fmt.Errorf("exec into the canary pod: %w", err)
	}
}

// Baseline runs the canary pod before anything is changed, removes it and returns the checks that failed, CheckPod and CheckExec among them: what
// failed before is no fault of what is done to the node. Errors are those of Prove that say nothing of the node.
func (r Prover) Baseline(ctx context.Context, p CanaryParams, note func(string)) ([]CanaryCheck, error) {
	parent := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, canaryTimeout, fmt.Errorf("no report after %s", canaryTimeout))
	defer cancel()
	pod := Canary(p)
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		// What is left is removed with the run's other pods.
		_ = r.Client.CoreV1().Pods(pod.Namespace).Delete(undo, pod.Name, atOnce())
	}()
	created, err := r.replacePod(ctx, "the canary pod", pod)
	if err != nil {
		return nil, err
	}
	checks, err := r.awaitCanary(ctx, created, note)
	var start *StartError
	var outage *OutageError
	switch {
	case parent.Err() != nil:
		return nil, context.Cause(parent)
	case errors.As(err, &outage):
		return nil, err
	case errors.As(err, &start) && strings.HasPrefix(start.Reason, outOf):
		note(fmt.Sprintf("the node is full, so that the canary pod could not be run on it before: %s", start))
		return nil, nil
	case err != nil:
		return []CanaryCheck{{Name: CheckPod, Message: err.Error()}}, nil
	}
	bad := failed(checks)
	if err := r.exec(ctx, pod, note); errors.As(err, &outage) {
		return nil, err
	} else if err != nil {
		bad = append(bad, CanaryCheck{Name: CheckExec, Message: untrusted.Line(err.Error(), maxReason)})
	}
	return bad, nil
}

// outOf begins the reasons of a kubelet that has no room for a pod: OutOfcpu, OutOfpods (pkg/kubelet/lifecycle/predicate.go). A drain makes some.
const outOf = "OutOf"

// StartCanary creates the canary pod for a Prove to come, whose CanaryParams then say Started.
func (r Prover) StartCanary(ctx context.Context, p CanaryParams) error {
	if _, err := r.Client.CoreV1().Pods(Namespace).Create(ctx, Canary(p), metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create canary pod: %w", err)
	}
	return nil
}

// alive returns a pod that is there and has not ended, or nil.
func (r Prover) alive(ctx context.Context, pod *corev1.Pod) *corev1.Pod {
	var now *corev1.Pod
	if r.Watch != nil {
		pods, _ := r.Watch.Seen()
		for i := range pods {
			if pods[i].Namespace == pod.Namespace && pods[i].Name == pod.Name {
				now = &pods[i]
			}
		}
	}
	if now == nil {
		var err error
		if now, err = r.Client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{}); err != nil {
			return nil
		}
	}
	if now.DeletionTimestamp != nil || now.Status.Phase == corev1.PodFailed || now.Status.Phase == corev1.PodSucceeded {
		return nil
	}
	return now
}

// awaitCanary waits for the canary's report. Pod is as it was created or seen last.
func (r Prover) awaitCanary(ctx context.Context, pod *corev1.Pod, note func(string)) ([]CanaryCheck, error) {
	start := startWatch{client: r.Client}
	now := podLook{runner: r.Runner, pod: pod, asked: r.Clock.Now()}
	interval := canaryInterval
	var last error
	away := false
	for {
		var changed <-chan struct{}
		if r.Watch != nil {
			changed = r.Watch.Changed()
		}
		current, err := now.look(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			// Cut short, which says nothing new.
		case apierrors.IsNotFound(err):
			return nil, &AdmissionError{What: "the canary pod", Cause: errors.New("somebody has deleted it")}
		case err != nil && !IsTransient(err):
			return nil, &OutageError{Cause: fmt.Errorf("get canary pod: %w", err)}
		case err != nil:
			last, away = err, true
		default:
			away = false
			checks, err := r.judgeCanary(ctx, current, &start, note)
			if checks != nil || err != nil {
				return checks, err
			}
			last = fmt.Errorf("it is %s", current.Status.Phase)
		}
		if err := pauseFor(ctx, r.Clock, interval, changed); err != nil {
			err = fmt.Errorf("canary: %w", errors.Join(err, last))
			if away {
				return nil, &OutageError{Cause: err}
			}
			return nil, err
		}
		interval = min(2*interval, maxCanaryInterval)
	}
}

// podLook looks at one pod again and again: in the watch, and where that does not know the pod yet, or is not there, by a request now and then.
type podLook struct {
	runner *Runner
	pod    *corev1.Pod
	asked  time.Time
	seen   bool // in the watch
}

func (l *podLook) look(ctx context.Context) (*corev1.Pod, error) {
	interval := canaryLook
	if l.runner.Watch != nil {
		if pods, watched := l.runner.Watch.Seen(); watched {
			i := slices.IndexFunc(pods, func(pod corev1.Pod) bool { return pod.UID == l.pod.UID })
			switch {
			case i >= 0:
				l.pod, l.seen = &pods[i], true
				return l.pod, nil
			case l.seen:
				return nil, apierrors.NewNotFound(corev1.Resource("pods"), l.pod.Name)
			}
			interval = calmInterval
		}
	}
	now := l.runner.Clock.Now()
	if now.Sub(l.asked) < interval {
		return l.pod, nil
	}
	pod, err := l.runner.Client.CoreV1().Pods(l.pod.Namespace).Get(ctx, l.pod.Name, metav1.GetOptions{})
	if err == nil {
		l.pod, l.asked = pod, now
	}
	return pod, err
}

// judgeCanary returns the canary's checks; nil while there is no report.
func (r Prover) judgeCanary(ctx context.Context, pod *corev1.Pod, start *startWatch, note func(string)) ([]CanaryCheck, error) {
	if err := start.check(ctx, r.Clock.Now(), pod.Name, pod); err != nil {
		return nil, fmt.Errorf("canary: %w", err)
	}
	checks, log, err := r.canaryReport(ctx, pod.Name)
	if tooMuch := new(untrusted.TooMuchError); errors.As(err, &tooMuch) {
		return nil, fmt.Errorf("canary: %w", err)
	}
	if err != nil {
		return nil, nil //nolint:nilerr // it may not have started; asked again, until the canary's time is over
	}
	reported := len(checks) > 0
	ended := pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
	switch {
	case !reported && ended:
		return nil, fmt.Errorf("canary: it ended without a report: %s", untrusted.Line(log, maxWords))
	case !reported:
		return nil, nil
	}
	unchecked := ""
	for i, check := range checks {
		if needsDNS(check) && !check.OK {
			if unchecked = r.noDNS(ctx); unchecked != "" {
				checks[i].OK = true
			}
		}
	}
	if unchecked != "" {
		note("names were not resolved in the canary pod: " + unchecked)
	}
	return checks, nil
}

// canaryReport listens to the canary's log for its report, for at most canaryFollow. Log is its last words where there was none.
func (r Prover) canaryReport(ctx context.Context, pod string) (checks []CanaryCheck, log string, err error) {
	ctx, cancel := context.WithTimeout(ctx, canaryFollow)
	defer cancel()
	stream, err := r.Client.CoreV1().Pods(Namespace).GetLogs(pod, &corev1.PodLogOptions{Container: PhaseCanary, Follow: true}).Stream(ctx)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = stream.Close() }()
	err = untrusted.Lines(stream, "the log of pod "+pod, maxLine, maxReport, func(line []byte) bool {
		found, reported := parseCanary(line)
		checks, log = found, log+string(line)+"\n"
		log = log[max(0, len(log)-maxWords):]
		return !reported
	})
	return checks, log, err
}

// failed are the checks that failed.
func failed(checks []CanaryCheck) []CanaryCheck {
	return slices.DeleteFunc(slices.Clone(checks), func(check CanaryCheck) bool { return check.OK })
}

// noDNS tells why names cannot be resolved anywhere in the cluster, empty if they can, and in doubt: there is no service that the kubelets
// point pods to, or none of its servers is ready. On a cluster's only node they cannot start before it is uncordoned.
func (r Prover) noDNS(ctx context.Context) string {
	const service = "kube-dns"
	_, err := r.Client.CoreV1().Services(metav1.NamespaceSystem).Get(ctx, service, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "the cluster has no " + service + " Service"
	}
	ready, known, err := oldapi.HasReadyEndpoint(ctx, r.Client, metav1.NamespaceSystem, service)
	if err != nil || !known || ready {
		return ""
	}
	return "no server of the " + service + " Service is ready in the cluster"
}

// exec runs a command in the canary.
func (r Prover) exec(ctx context.Context, pod *corev1.Pod, note func(string)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, execTimeout, fmt.Errorf("no answer after %s", execTimeout))
	defer cancel()
	if !r.MayExec(ctx) {
		note("you may not exec into pods: exec was not checked")
		return nil
	}
	for answered := 0; ; {
		_, err := r.execIn(ctx, maxAnswer, pod.Name, PhaseCanary, agentCommand, "version")
		if err == nil {
			return nil
		}
		// A connection that breaks looks the same whoever broke it, so that the API server is asked for something else.
		away := !answers(ctx, r.Client, pod)
		if !away {
			answered++
		}
		if answered < execTries && r.pause(ctx) == nil {
			continue
		}
		if away {
			return &OutageError{Cause: err}
		}
		return err
	}
}

// CheckMetrics asks the kubelet for its pods' metrics, which it gets from the runtime, for at most requestTimeout. They need a right that
// few have, so that none are no failure: note gets why, a sentence.
func (r Prover) CheckMetrics(ctx context.Context, node string, note func(string)) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var last string
	for {
		raw, err := readAll(ctx, r.Client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", node, "proxy/stats/summary"), "their text", maxSummary)
		if apierrors.IsForbidden(err) {
			note("you may not read nodes/proxy: the kubelet's metrics were not checked")
			return
		}
		var summary struct {
			Pods []struct{} `json:"pods"`
		}
		switch {
		case err != nil:
			last = err.Error()
		case json.Unmarshal(raw, &summary) != nil || len(summary.Pods) == 0:
			last = "they name no pods"
		default:
			return
		}
		if err != nil && !IsTransient(err) || r.pause(ctx) != nil {
			note("the kubelet's metrics were not checked: " + last)
			return
		}
	}
}
