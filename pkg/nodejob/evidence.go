package nodejob

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/exec"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// PhaseEvidence is the LabelPhase of the pod that gathers evidence, for Remove; it is no phase of the agent.
const PhaseEvidence = "evidence"

// EvidenceParams is what the pod that gathers a run's evidence is made from.
type EvidenceParams struct {
	Node, Run, Image string
	PullPolicy       corev1.PullPolicy
	Pod              PodOptions
}

// evidenceSeconds ends the pod that gathers evidence where nobody removes it.
const evidenceSeconds = 180

// EvidencePod is the manifest of a pod in which the evidence of a run can be gathered. It starts nothing, and its log holds nothing: log
// shippers forward what pods print.
func EvidencePod(p EvidenceParams) *corev1.Pod {
	set := NodeLabels(p.Node)
	set[LabelRun] = p.Run
	set[LabelPhase] = PhaseEvidence
	spec := agentPod(p.Node, p.Image, p.PullPolicy, "sleep")
	p.Pod.applyTo(&spec)
	spec.RestartPolicy = corev1.RestartPolicyNever
	spec.ActiveDeadlineSeconds = ptr.To[int64](evidenceSeconds)
	spec.Containers[0].VolumeMounts[0].ReadOnly = true
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: "runtime-evidence-" + hash(p.Node, p.Run, PhaseEvidence), Labels: set},
		Spec:       spec,
	}
}

// Evidence has the node gather the evidence of a run, by an exec into a pod, and returns it as the tar.gz that the agent's `evidence`
// writes. The pod is removed in any case.
func (r *Runner) Evidence(ctx context.Context, p EvidenceParams) ([]byte, error) {
	if !r.MayExec(ctx) {
		return nil, fmt.Errorf("you may not exec into pods of namespace %s, by which the host's evidence comes; on the node itself, as root, "+
			"`runtime-agent evidence --run %s --output FILE` gathers it", Namespace, p.Run)
	}
	pod := EvidencePod(p)
	pods := r.Client.CoreV1().Pods(Namespace)
	if _, err := r.replacePod(ctx, "pod "+pod.Name, pod); err != nil {
		return nil, err
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		// What is left is removed with the run's other pods when the next run begins.
		_ = pods.Delete(undo, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
	}()
	start := startWatch{client: r.Client}
	for failures := 0; ; {
		current, err := pods.Get(ctx, pod.Name, metav1.GetOptions{})
		if err == nil {
			err = start.check(ctx, r.Clock.Now(), pod.Name, current)
		}
		switch {
		case err != nil && !IsTransient(err), apierrors.IsNotFound(err):
			return nil, err
		case err == nil && current.Status.Phase == corev1.PodRunning:
			var data []byte
			data, err = r.execIn(ctx, untrusted.MaxArchive, pod.Name, agentName, agentCommand, "evidence", hostFlag, "--run="+p.Run, "--output=-")
			if err == nil {
				return data, nil
			}
			err = fmt.Errorf("gather evidence on the host: %w", err)
			if failures++; failures == execTries || isFinal(err) {
				return nil, err
			}
		case err == nil && (current.Status.Phase == corev1.PodSucceeded || current.Status.Phase == corev1.PodFailed):
			return nil, fmt.Errorf("pod %s has ended before its host was looked at", pod.Name)
		}
		if pauseErr := r.pause(ctx); pauseErr != nil {
			return nil, errors.Join(pauseErr, err)
		}
	}
}

// isFinal reports whether a command would fail again: it ran and said no, or what it printed was too much.
func isFinal(err error) bool {
	var exit exec.CodeExitError
	var tooMuch *untrusted.TooMuchError
	return errors.As(err, &exit) || errors.As(err, &tooMuch)
}
