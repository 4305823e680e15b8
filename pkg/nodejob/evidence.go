package nodejob

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// PhaseEvidence is the LabelPhase of the pod that gathers evidence, for Remove; it is no phase of the agent.
const PhaseEvidence = "evidence"

// EvidenceParams is what the pod that gathers a run's evidence is made from.
type EvidenceParams struct {
	Node, Run, Image string
	PullPolicy       corev1.PullPolicy
}

// EvidencePod is the manifest of a pod that prints the evidence of a run to its log. It starts nothing on the host.
func EvidencePod(p EvidenceParams) *corev1.Pod {
	set := NodeLabels(p.Node)
	set[LabelRun] = p.Run
	set[LabelPhase] = PhaseEvidence
	spec := agentPod(p.Node, p.Image, p.PullPolicy, "evidence", "--host=/host", "--run="+p.Run)
	spec.RestartPolicy = corev1.RestartPolicyNever
	spec.Containers[0].VolumeMounts[0].ReadOnly = true
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: "runtime-evidence-" + hash(p.Node, p.Run, PhaseEvidence), Labels: set},
		Spec:       spec,
	}
}

// Evidence has the node gather the evidence of a run and returns it as the tar.gz that the agent's `evidence` writes. The pod is
// removed in any case.
func (r *Runner) Evidence(ctx context.Context, p EvidenceParams) ([]byte, error) {
	pod := EvidencePod(p)
	pods := r.Client.CoreV1().Pods(Namespace)
	if err := r.replacePod(ctx, pod); err != nil {
		return nil, fmt.Errorf("create pod %s: %w", pod.Name, err)
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		// What is left is removed with the run's other pods when the next run begins.
		_ = pods.Delete(undo, pod.Name, atOnce())
	}()
	start := startWatch{client: r.Client}
	for {
		current, err := pods.Get(ctx, pod.Name, metav1.GetOptions{})
		if err == nil {
			err = start.check(ctx, r.Clock.Now(), pod.Name, current)
		}
		switch {
		case err != nil && !IsTransient(err), apierrors.IsNotFound(err):
			return nil, err
		case err == nil && (current.Status.Phase == corev1.PodSucceeded || current.Status.Phase == corev1.PodFailed):
			return r.readEvidence(ctx, pod.Name)
		}
		if pauseErr := r.pause(ctx); pauseErr != nil {
			return nil, errors.Join(pauseErr, err)
		}
	}
}

func (r *Runner) readEvidence(ctx context.Context, pod string) ([]byte, error) {
	log, err := r.Client.CoreV1().Pods(Namespace).GetLogs(pod, &corev1.PodLogOptions{Container: agentName}).DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("read log of pod %s: %w", pod, err)
	}
	return parseEvidence(log)
}

// parseEvidence decodes what stands between the two marker lines.
func parseEvidence(log []byte) ([]byte, error) {
	_, rest, begun := bytes.Cut(log, []byte(protocol.EvidenceBegin))
	text, _, ended := bytes.Cut(rest, []byte(protocol.EvidenceEnd))
	if !begun || !ended {
		return nil, fmt.Errorf("the agent gathered nothing: %s", strings.TrimSpace(string(log[max(0, len(log)-maxWords):])))
	}
	data, err := base64.StdEncoding.DecodeString(string(bytes.Join(bytes.Fields(text), nil)))
	if err != nil {
		return nil, fmt.Errorf("decode the agent's evidence: %w", err)
	}
	return data, nil
}
