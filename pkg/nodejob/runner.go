package nodejob

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodewatch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/paging"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// pollInterval is how often pods and Jobs are looked at: one small request per node, which may be out of service meanwhile.
const pollInterval = 500 * time.Millisecond

// calmInterval is how often they are looked at while a pod's log is read, which ends with the pod.
const calmInterval = 5 * time.Second

// outagePatience is how long the API server may be away while nothing on the node explains it.
const outagePatience = 2 * time.Minute

// removeTimeout bounds the removal of a pod that is of no more use.
const removeTimeout = 10 * time.Second

// maxWords bounds what an error repeats of a log, in bytes.
const maxWords = 500

// Runner creates, follows and removes the Jobs and canaries of nodes.
type Runner struct {
	Client kubernetes.Interface
	// Config is for exec, which is no plain request.
	Config *rest.Config
	Clock  clock.WithTicker
	// Watch, if it is set, knows the pods on the one node that this Runner is for, and saves a request for each look at them.
	Watch *nodewatch.Watch
	// SilencePatience is how long a pod that runs may say nothing; zero means a minute.
	SilencePatience time.Duration

	mayExec atomic.Bool // the API server has said so
}

// For is a Runner for one node, whose pods a watch knows.
func (r *Runner) For(watch *nodewatch.Watch) *Runner {
	return &Runner{Client: r.Client, Config: r.Config, Clock: r.Clock, Watch: watch, SilencePatience: r.SilencePatience}
}

// Ensure creates the Job, or finds the same one that is there. One that failed, that cannot tell its result any more, that has another
// image, or that waits where this one does not is replaced.
func (r *Runner) Ensure(ctx context.Context, job *batchv1.Job) error {
	ctx, cancel := context.WithTimeoutCause(ctx, outagePatience, fmt.Errorf("not done after %s", outagePatience))
	defer cancel()
	began := r.Clock.Now()
	var last error
	for {
		done, err := r.tryEnsure(ctx, job, r.Clock.Now().Sub(began) >= admitPatience)
		if done {
			return nil
		}
		if err != nil && !IsTransient(err) {
			return fmt.Errorf("create job %s: %w", job.Name, err)
		}
		if err != nil {
			last = err
		}
		if err := r.pause(ctx); err != nil {
			return fmt.Errorf("create job %s: %w", job.Name, errors.Join(err, last))
		}
	}
}

// tryEnsure reports whether the Job is there. Neither done nor an error means: look again. late: a webhook that cannot be called refuses the Job.
func (r *Runner) tryEnsure(ctx context.Context, job *batchv1.Job, late bool) (done bool, err error) {
	jobs := r.Client.BatchV1().Jobs(job.Namespace)
	_, refused := jobs.Create(ctx, job, metav1.CreateOptions{})
	if refused == nil {
		return true, nil
	}
	if !apierrors.IsAlreadyExists(refused) && !isRefused(refused) {
		return false, refused
	}
	existing, err := jobs.Get(ctx, job.Name, metav1.GetOptions{}) // what is refused now may be there from before
	switch {
	case apierrors.IsNotFound(err) && apierrors.IsAlreadyExists(refused):
		return false, nil
	case apierrors.IsNotFound(err):
		if late || !IsTransient(refused) {
			refused = &AdmissionError{What: "the agent's Job", Cause: refused}
		}
		return false, refused
	case err != nil:
		return false, err
	case existing.DeletionTimestamp != nil:
		return false, nil
	}
	useless := hasCondition(existing, batchv1.JobFailed) || Waits(existing) && !Waits(job) || imageOf(existing) != imageOf(job)
	if hasCondition(existing, batchv1.JobComplete) {
		pod, err := r.Pod(ctx, existing.Labels)
		if err != nil {
			return false, err
		}
		useless = useless || pod == nil
	}
	if !useless {
		return true, nil
	}
	err = jobs.Delete(ctx, job.Name, metav1.DeleteOptions{
		PropagationPolicy: ptr.To(metav1.DeletePropagationBackground),
		Preconditions:     &metav1.Preconditions{UID: &existing.UID},
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		err = nil
	}
	return false, err
}

// imageOf is the image that a Job was made with. Jobs of earlier versions say so in their container only.
func imageOf(job *batchv1.Job) string {
	if image, ok := job.Annotations[annotationImage]; ok {
		return image
	}
	return agentImage(&job.Spec.Template.Spec)
}

// agentImage is the image of the agent's container, "" where a pod has none. A webhook may have put another container before it.
func agentImage(spec *corev1.PodSpec) string {
	for _, container := range spec.Containers {
		if container.Name == agentName {
			return container.Image
		}
	}
	return ""
}

func hasCondition(job *batchv1.Job, kind batchv1.JobConditionType) bool {
	for _, condition := range job.Status.Conditions {
		if condition.Type == kind && condition.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

// Pod is the newest pod with all these labels, or nil.
func (r *Runner) Pod(ctx context.Context, set map[string]string) (*corev1.Pod, error) {
	pods, err := r.pods(ctx, labels.SelectorFromSet(set))
	if err != nil {
		return nil, err
	}
	var newest *corev1.Pod
	for i := range pods {
		if newest == nil || newest.CreationTimestamp.Before(&pods[i].CreationTimestamp) {
			newest = &pods[i]
		}
	}
	return newest, nil
}

// pods are this program's pods with certain labels. All of them are bound to a node when they are made.
func (r *Runner) pods(ctx context.Context, selector labels.Selector) ([]corev1.Pod, error) {
	if r.Watch == nil || !r.Watch.Watched() {
		return paging.All[corev1.Pod](ctx, r.Client.CoreV1().Pods(Namespace).List, metav1.ListOptions{LabelSelector: selector.String()})
	}
	pods, err := r.Watch.Pods(ctx)
	return slices.DeleteFunc(pods, func(pod corev1.Pod) bool {
		return pod.Namespace != Namespace || !selector.Matches(labels.Set(pod.Labels))
	}), err
}

// PhasePod is the newest pod of a phase's Job, or nil.
func (r *Runner) PhasePod(ctx context.Context, spec protocol.Spec) (*corev1.Pod, error) {
	return r.Pod(ctx, jobLabels(spec))
}

// Remove deletes the Jobs and canaries of a node, and their pods. With phases, only those of these. The pods are gone from the API at once, and the
// kubelet ends their containers: a pod that is still being deleted when its kubelet changes runtimes may stay for good (see rollout, awaitLeaving), and
// these pods hold nothing.
func (r *Runner) Remove(ctx context.Context, node string, phases ...protocol.Phase) error {
	selector := labels.SelectorFromSet(NodeLabels(node))
	if len(phases) > 0 {
		names := make([]string, len(phases))
		for i, phase := range phases {
			names[i] = string(phase)
		}
		in, err := labels.NewRequirement(LabelPhase, selection.In, names)
		if err != nil {
			return fmt.Errorf("remove jobs of node %s: %w", node, err)
		}
		selector = selector.Add(*in)
	}
	jobs, err := paging.All[batchv1.Job](ctx, r.Client.BatchV1().Jobs(Namespace).List, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return fmt.Errorf("remove jobs of node %s: %w", node, err)
	}
	var errs []error
	for i := range jobs {
		errs = append(errs, r.removeJob(ctx, jobs[i].Name))
	}
	if err := errors.Join(append(errs, r.removePods(ctx, selector))...); err != nil {
		return fmt.Errorf("remove jobs of node %s: %w", node, err)
	}
	return nil
}

// RemoveJob deletes the Job of one phase of one run, its pods with it, without waiting for these.
func (r *Runner) RemoveJob(ctx context.Context, spec protocol.Spec) error {
	err := errors.Join(
		r.removeJob(ctx, JobName(spec.Node, spec.Run, spec.Phase)), r.removePods(ctx, labels.SelectorFromSet(jobLabels(spec))),
	)
	if err != nil {
		return fmt.Errorf("remove job of node %s: %w", spec.Node, err)
	}
	return nil
}

func (r *Runner) removeJob(ctx context.Context, name string) error {
	err := r.Client.BatchV1().Jobs(Namespace).Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// removePods removes pods at once. Those of Jobs would go with them, but with the grace of their own.
func (r *Runner) removePods(ctx context.Context, selector labels.Selector) error {
	pods, err := r.pods(ctx, selector)
	if err != nil {
		return err
	}
	var errs []error
	for i := range pods {
		err := r.Client.CoreV1().Pods(Namespace).Delete(ctx, pods[i].Name, atOnce())
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// atOnce removes a pod from the API without waiting for its kubelet.
func atOnce() metav1.DeleteOptions {
	return metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}
}

// pause waits for the next look, or returns the cause of ctx's end.
func (r *Runner) pause(ctx context.Context) error { return pauseFor(ctx, r.Clock, pollInterval, nil) }

// pauseFor also ends with a change.
func pauseFor(ctx context.Context, c clock.WithTicker, interval time.Duration, changed <-chan struct{}) error {
	timer := c.NewTimer(interval)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C():
	case <-changed:
	}
	return nil
}

// IsTransient reports whether a request may succeed when it is sent again: the server was not there, was too busy, said that it failed or did not
// take the credentials. What it refused on purpose is not, and no *AdmissionError.
func IsTransient(err error) bool {
	var refused *AdmissionError
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.As(err, &refused):
		return false
	case apierrors.IsUnauthorized(err): // the next request may have other credentials: those of a plugin are renewed after a 401
		return true
	case apierrors.IsInternalError(err), apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsTooManyRequests(err),
		apierrors.IsServiceUnavailable(err), apierrors.IsUnexpectedServerError(err), apierrors.IsConflict(err):
		return true
	}
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return status.Status().Code >= 500
	}
	return true // no answer of the server at all
}
