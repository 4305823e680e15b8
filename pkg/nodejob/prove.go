package nodejob

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

const (
	// canaryTimeout is for sandbox, network and the canary's own checks.
	canaryTimeout = 2 * time.Minute
	// execTimeout is for the command, requestTimeout for one answer of kubelet or API server.
	execTimeout    = 30 * time.Second
	requestTimeout = 5 * time.Second
)

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

// What Prove checks beside the canary's own checks: that its container starts, that it reports, that the kubelet reaches it, and exec.
const (
	checkStart  = "start"
	checkReport = "report"
	checkReady  = "ready"
	checkExec   = "exec"
)

// errCanaryTime ends the wait for a canary.
var errCanaryTime = fmt.Errorf("not ready after %s", canaryTimeout)

// Prove runs the canary pod and returns the checks that failed. Note gets what could not be checked, a sentence each. The error is for
// what says nothing about the runtime: a pod that the API server does not take, an image that cannot be pulled (a *StartError), and an
// API server that was away (an *OutageError). The pod is left to Remove.
func (r *Runner) Prove(ctx context.Context, p CanaryParams, note func(string)) ([]CanaryCheck, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, canaryTimeout, errCanaryTime)
	defer cancel()
	pod := Canary(p)
	if err := r.replacePod(ctx, pod); err != nil {
		return nil, fmt.Errorf("create canary pod: %w", err)
	}
	failed, runs, err := r.awaitCanary(ctx, pod, note)
	if err != nil {
		return nil, fmt.Errorf("canary: %w", err)
	}
	if !runs {
		return failed, nil
	}
	var outage *OutageError
	err = r.exec(ctx, pod, note)
	switch {
	case errors.As(err, &outage):
		return nil, fmt.Errorf("exec into the canary pod: %w", err)
	case err != nil:
		failed = append(failed, CanaryCheck{Name: checkExec, Message: err.Error()})
	}
	if !p.Baseline {
		r.stats(ctx, p.Node, note)
	}
	return failed, nil
}

// replacePod creates a pod in the place of one that an earlier try left.
func (r *Runner) replacePod(ctx context.Context, pod *corev1.Pod) error {
	pods := r.Client.CoreV1().Pods(pod.Namespace)
	for {
		_, err := pods.Create(ctx, pod, metav1.CreateOptions{})
		if err == nil {
			return nil
		}
		if !apierrors.IsAlreadyExists(err) && !IsTransient(err) {
			return err
		}
		if apierrors.IsAlreadyExists(err) {
			if err := pods.Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) && !IsTransient(err) {
				return err
			}
		}
		if sleepErr := r.pause(ctx); sleepErr != nil {
			return &OutageError{Cause: errors.Join(sleepErr, err)}
		}
	}
}

// awaitCanary waits until the canary has reported and is ready, or will not be. Runs tells whether there is a container to exec into.
func (r *Runner) awaitCanary(ctx context.Context, pod *corev1.Pod, note func(string)) (failed []CanaryCheck, runs bool, err error) {
	start := startWatch{client: r.Client}
	state := "it is Pending"
	var outage error
	for {
		current, err := r.Client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		switch {
		case err != nil && ctx.Err() != nil:
			// Cut short, which says nothing new.
		case err != nil && !IsTransient(err):
			return nil, false, fmt.Errorf("get pod %s: %w", pod.Name, err)
		case err != nil:
			outage = err
		default:
			outage, state = nil, fmt.Sprintf("it is %s", current.Status.Phase)
			var done bool
			if failed, runs, done, err = r.judgeCanary(ctx, current, &start, note); done || err != nil {
				return failed, runs, err
			}
		}
		if r.pause(ctx) == nil {
			continue
		}
		switch cause := context.Cause(ctx); {
		case outage != nil:
			return nil, false, &OutageError{Cause: errors.Join(cause, outage)}
		case !errors.Is(cause, errCanaryTime):
			return nil, false, cause
		default:
			return append(failed, CanaryCheck{Name: checkReady, Message: cause.Error() + ": " + state}), runs, nil
		}
	}
}

// judgeCanary looks at the canary once. It is done when it has reported and is ready, and when that will not come.
func (r *Runner) judgeCanary(ctx context.Context, pod *corev1.Pod, start *startWatch, note func(string)) (failed []CanaryCheck, runs, done bool, err error) {
	err = start.check(ctx, r.Clock.Now(), pod.Name, pod)
	var noStart *StartError
	switch {
	case errors.As(err, &noStart) && noStart.Image == "":
		return []CanaryCheck{{Name: checkStart, Message: err.Error()}}, false, true, nil
	case err != nil:
		return nil, false, false, err
	case !hasStarted(pod):
		return nil, false, false, nil
	}
	log, err := r.Client.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: PhaseCanary}).DoRaw(ctx)
	if err != nil {
		return nil, false, false, nil //nolint:nilerr // asked again, until the canary's time is over
	}
	checks, reported := parseCanary(log)
	ended := pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
	switch {
	case !reported && ended:
		return []CanaryCheck{{Name: checkReport, Message: "it ended without a report: " + strings.TrimSpace(string(log))}}, false, true, nil
	case !reported:
		return nil, false, false, nil
	}
	for _, check := range checks {
		switch {
		case check.OK:
		case needsDNS(check) && !r.hasDNS(ctx):
			note(check.Name + " was not checked: the cluster has no kube-dns Service")
		default:
			failed = append(failed, check)
		}
	}
	return failed, !ended, ended || isReady(pod), nil
}

// hasDNS reports whether the cluster has a DNS service that the kubelets point pods to. In doubt it has.
func (r *Runner) hasDNS(ctx context.Context) bool {
	_, err := r.Client.CoreV1().Services(metav1.NamespaceSystem).Get(ctx, "kube-dns", metav1.GetOptions{})
	return !apierrors.IsNotFound(err)
}

func isReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// exec runs a command in the canary, as `kubectl exec` does it: over a WebSocket, or over SPDY where server or proxy have no other.
func (r *Runner) exec(ctx context.Context, pod *corev1.Pod, note func(string)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, execTimeout, fmt.Errorf("no answer after %s", execTimeout))
	defer cancel()
	review, err := r.Client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: "create", Resource: "pods", Subresource: "exec", Namespace: pod.Namespace,
		}},
	}, metav1.CreateOptions{})
	if err == nil && !review.Status.Allowed {
		// Asked beforehand, since a refused upgrade is told by its text alone.
		note("you may not exec into pods: exec was not checked")
		return nil
	}
	for answered := 0; ; {
		err := r.tryExec(ctx, pod)
		if err == nil {
			return nil
		}
		// A connection that breaks looks the same whoever broke it, so that the API server is asked for something else.
		away := !r.answers(ctx, pod)
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

// answers reports whether the API server does, also where ctx is over.
func (r *Runner) answers(ctx context.Context, pod *corev1.Pod) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	_, err := r.Client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	return err == nil || !IsTransient(err)
}

// tryExec runs the command once.
func (r *Runner) tryExec(ctx context.Context, pod *corev1.Pod) error {
	config := rest.CopyConfig(r.Config)
	config.GroupVersion, config.APIPath = &corev1.SchemeGroupVersion, "/api"
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return err
	}
	url := client.Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: PhaseCanary, Command: []string{agentCommand, "version"}, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec).URL()
	spdy, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, url)
	if err != nil {
		return err
	}
	webSocket, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, url.String())
	if err != nil {
		return err
	}
	executor, err := remotecommand.NewFallbackExecutor(webSocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return err
	}
	var out, errOut bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut})
	switch {
	case err != nil && ctx.Err() != nil:
		return errors.Join(context.Cause(ctx), err)
	case err != nil:
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(errOut.String()))
	case strings.TrimSpace(out.String()) == "":
		return errors.New("the command's output is empty")
	}
	return nil
}

// stats asks the kubelet for its pods' metrics, which it gets from the runtime. They need a right that few have, and the node is out
// of service meanwhile, so that they are neither waited for nor a failure.
func (r *Runner) stats(ctx context.Context, node string, note func(string)) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var last string
	for {
		raw, err := r.Client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", node, "proxy/stats/summary").DoRaw(ctx)
		if apierrors.IsForbidden(err) {
			note("you may not read nodes/proxy: the kubelet's metrics were not checked")
			return
		}
		var summary struct {
			Pods []struct{} `json:"pods"`
		}
		switch {
		case err != nil && !IsTransient(err) && ctx.Err() == nil:
			note("the kubelet's metrics were not checked: " + err.Error())
			return
		case err != nil:
			last = err.Error()
		case json.Unmarshal(raw, &summary) != nil || len(summary.Pods) == 0:
			last = "they name no pods"
		default:
			return
		}
		if r.pause(ctx) != nil {
			note("the kubelet's metrics were not checked: " + last)
			return
		}
	}
}
