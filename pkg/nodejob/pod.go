package nodejob

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// replacePod creates a pod, which errors call what, in the place of one that an earlier try left. That one goes at once: see Remove.
func (r *Runner) replacePod(ctx context.Context, what string, pod *corev1.Pod) (*corev1.Pod, error) {
	pods := r.Client.CoreV1().Pods(pod.Namespace)
	began := r.Clock.Now()
	for {
		request, cancel := context.WithTimeout(ctx, requestTimeout)
		created, err := pods.Create(request, pod, metav1.CreateOptions{})
		cancel()
		late := r.Clock.Now().Sub(began) >= createPatience
		switch {
		case err == nil:
			return created, nil
		case apierrors.IsAlreadyExists(err):
			if err := pods.Delete(ctx, pod.Name, atOnce()); err != nil && !apierrors.IsNotFound(err) && !IsTransient(err) {
				return nil, err
			}
		case isRefused(err) && (late || !IsTransient(err)):
			return nil, &AdmissionError{What: what, Cause: err}
		case late && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) && answers(ctx, r.Client, pod):
			// The server answers, but not to this.
			return nil, &AdmissionError{What: what, Cause: fmt.Errorf("no answer for %s, as from a webhook that hangs: %w", requestTimeout, err)}
		case !IsTransient(err):
			return nil, fmt.Errorf("create %s: %w", what, err)
		}
		if sleepErr := r.pause(ctx); sleepErr != nil {
			return nil, &OutageError{Cause: fmt.Errorf("create %s: %w", what, errors.Join(sleepErr, err))}
		}
	}
}

// answers reports whether the API server does, also where ctx is over.
func answers(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	_, err := client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	return err == nil || !IsTransient(err)
}
