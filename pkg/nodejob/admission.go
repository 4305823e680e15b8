package nodejob

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

const (
	// admitPatience is how long a dry run is repeated while a webhook cannot be called.
	admitPatience = 15 * time.Second
	// answerPatience is how long a dry run is repeated while the server does not answer, or only with errors of its own. The server itself may wait 30 s
	// for a webhook (timeoutSeconds), and then ignore it (failurePolicy).
	answerPatience = time.Minute
	// podSecurityTries is how often a refusal by Pod Security is looked at again: it reads the namespace's labels, which have just been changed, from
	// a cache of each API server (k8s.io/pod-security-admission, admission/namespace.go).
	podSecurityTries = 10
	// createPatience is how long a pod is tried while its node is out of service. No node has a part in what a webhook answers.
	createPatience = 5 * time.Second
)

// AdmissionError says that the cluster does not let in an object, or has removed it: a policy, a webhook, a quota. It says nothing of a node.
type AdmissionError struct {
	// What is the object, in a sentence: "the canary pod".
	What  string
	Cause error
}

func (e *AdmissionError) Error() string {
	return fmt.Sprintf("the cluster does not admit %s: %s", e.What, untrusted.Line(e.Cause.Error(), maxReason))
}

func (e *AdmissionError) Unwrap() error { return e.Cause }

// TryJob asks the API server by dry runs whether it admits a Job and its pod. What it refuses is an *AdmissionError. The pod is tried as this
// program's user and with the Job as its owner; the Job controller, who creates it, may have other rights. It returns the image that the agent's
// container gets, which a webhook may have changed, or "" if that is not known.
func (r *Runner) TryJob(ctx context.Context, job *batchv1.Job) (image string, err error) {
	template := &job.Spec.Template
	err = r.try(ctx, "the agent's Job", func(ctx context.Context, options metav1.CreateOptions) error {
		admitted, err := r.Client.BatchV1().Jobs(job.Namespace).Create(ctx, job, options)
		if err == nil {
			template = &admitted.Spec.Template
		}
		return err
	})
	if err != nil {
		return "", err
	}
	owner := *metav1.NewControllerRef(job, batchv1.SchemeGroupVersion.WithKind("Job"))
	owner.UID, owner.BlockOwnerDeletion = "dry-run", nil // the Job is not there
	pod := &corev1.Pod{ObjectMeta: *template.ObjectMeta.DeepCopy(), Spec: template.Spec}
	pod.Namespace, pod.GenerateName, pod.OwnerReferences = job.Namespace, job.Name+"-", []metav1.OwnerReference{owner}
	admitted, err := r.TryPod(ctx, "the pod of the agent's Job", pod)
	if err != nil || admitted == nil {
		return "", err
	}
	return agentImage(&admitted.Spec), nil
}

// TryPod is TryJob for a pod, which errors call what. It returns the pod as it would be admitted, nil if that is not known.
func (r *Runner) TryPod(ctx context.Context, what string, pod *corev1.Pod) (admitted *corev1.Pod, err error) {
	err = r.try(ctx, what, func(ctx context.Context, options metav1.CreateOptions) error {
		created, err := r.Client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, options)
		if err == nil {
			admitted = created
		}
		return err
	})
	return admitted, err
}

func (r *Runner) try(ctx context.Context, what string, create func(context.Context, metav1.CreateOptions) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerPatience, fmt.Errorf("no answer for %s", answerPatience))
	defer cancel()
	patience, end := context.WithTimeout(ctx, admitPatience)
	defer end()
	var last error
	for tries := 1; ; tries++ {
		err := create(ctx, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		switch {
		case err == nil, apierrors.IsAlreadyExists(err), hasNoDryRun(err):
			return nil
		case isByPodSecurity(err) && tries < podSecurityTries:
			last = err
		case isRefused(err) && (!IsTransient(err) || patience.Err() != nil):
			return &AdmissionError{What: what, Cause: err}
		case ctx.Err() == nil || last == nil:
			last = err
		}
		if pauseErr := r.pause(ctx); pauseErr != nil {
			if isRefused(last) {
				return &AdmissionError{What: what, Cause: last}
			}
			return fmt.Errorf("try to create %s: %w: %w", what, pauseErr, last)
		}
	}
}

// isByPodSecurity reports whether Pod Security admission refused a pod; its words are the same since 1.22.
func isByPodSecurity(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "violates PodSecurity")
}

// hasNoDryRun reports whether a webhook's side effects keep the server from a dry run (apiserver, admission/plugin/webhook/errors,
// NewDryRunUnsupportedErr): what it would say is not known.
func hasNoDryRun(err error) bool {
	return apierrors.IsBadRequest(err) && strings.Contains(err.Error(), "does not support dry run")
}

// isRefused reports whether the API server has answered that it does not admit an object. A webhook that cannot be called is an internal error there,
// and one that denies chooses the code itself.
func isRefused(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && (!IsTransient(err) || strings.Contains(status.Status().Message, "webhook"))
}
