package nodeswitch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/yaml"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/redact"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// evidenceTimeout bounds how long a run that failed asks the cluster and the host why.
const evidenceTimeout = time.Minute

// EvidenceFile is one file that tells why a run failed. Its name has slashes, and none at the beginning.
type EvidenceFile struct {
	Name string
	Data []byte
}

// evidence is what tells why a run failed.
type evidence struct {
	*session
	progress bytes.Buffer // what was observed
}

// gather collects what tells why a run failed: the plugin's own progress, the node, its pods and the events as the API has them, and
// below host/ what the agent gathers on the node. What cannot be had is noted in its place.
func (s *evidence) gather(ctx context.Context, failure error) []EvidenceFile {
	ctx, cancel := context.WithTimeoutCause(ctx, evidenceTimeout, fmt.Errorf("not done after %s", evidenceTimeout))
	defer cancel()
	s.tell(Info, "gathering evidence of why it failed")
	files := []EvidenceFile{{"error.txt", []byte(failureText(failure))}}
	add := func(name string, data []byte, err error) {
		if err != nil {
			name, data = name+".missing", []byte(err.Error()+"\n")
		}
		files = append(files, EvidenceFile{name, data})
	}
	node, err := s.nodeEvidence(ctx)
	add("node.yaml", node, err)
	pods, err := s.podEvidence(ctx)
	add("pods.yaml", pods, err)
	events, err := s.eventEvidence(ctx)
	add("events.txt", events, err)
	if archive, err := s.runner.Evidence(ctx, nodejob.EvidenceParams{
		Node: s.name, Run: s.run, Image: s.options.Image, PullPolicy: s.options.PullPolicy, Pod: s.options.Pod,
	}); err != nil {
		add("host", nil, err)
		s.tell(Warning, "the evidence has nothing from the host itself: %s", err)
	} else if host, err := unpackEvidence(archive); err != nil {
		add("host", nil, err)
	} else {
		files = append(files, host...)
	}
	s.mu.Lock()
	progress := bytes.Clone(s.progress.Bytes())
	s.mu.Unlock()
	files = append(files, EvidenceFile{"progress.txt", progress})
	for i := range files { // also of an agent that overlooked one
		files[i].Data = redact.Text(files[i].Data)
	}
	return files
}

// failureText is a failure with all of its captured output: a terminal shows an excerpt.
func failureText(failure error) string {
	text := failure.Error() + "\n"
	var failed *Error
	if errors.As(failure, &failed) && failed.Detail != "" {
		text += "\n" + strings.TrimRight(failed.Detail, "\n") + "\n"
	}
	return text
}

// nodeEvidence is the Node without what only makes it long.
func (s *evidence) nodeEvidence(ctx context.Context) ([]byte, error) {
	node, err := s.client.CoreV1().Nodes().Get(ctx, s.name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	node.ManagedFields, node.Status.Images = nil, nil
	return yaml.Marshal(node)
}

// podEvidence is name, owner and status of the node's pods. Their specs stay out: environment variables hold secrets.
func (s *evidence) podEvidence(ctx context.Context) ([]byte, error) {
	list, err := s.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", s.name).String(),
	})
	if err != nil {
		return nil, err
	}
	type pod struct {
		Namespace string                  `json:"namespace"`
		Name      string                  `json:"name"`
		Owners    []metav1.OwnerReference `json:"owners,omitempty"`
		Deleted   *metav1.Time            `json:"deleted,omitempty"`
		Status    corev1.PodStatus        `json:"status"`
	}
	pods := make([]pod, len(list.Items))
	for i, p := range list.Items {
		pods[i] = pod{p.Namespace, p.Name, p.OwnerReferences, p.DeletionTimestamp, p.Status}
	}
	return yaml.Marshal(pods)
}

// eventEvidence lists the events on the node and in this program's namespace, a line each.
func (s *evidence) eventEvidence(ctx context.Context) ([]byte, error) {
	var out bytes.Buffer
	for _, selection := range []struct{ namespace, selector string }{
		{metav1.NamespaceDefault, fields.SelectorFromSet(fields.Set{"involvedObject.kind": "Node", "involvedObject.name": s.name}).String()},
		{nodejob.Namespace, ""},
	} {
		list, err := s.client.CoreV1().Events(selection.namespace).List(ctx, metav1.ListOptions{FieldSelector: selection.selector})
		if err != nil {
			return nil, err
		}
		for _, e := range list.Items {
			at := e.LastTimestamp.Time
			if at.IsZero() {
				at = e.EventTime.Time
			}
			fmt.Fprintf(&out, "%s %s %s %s/%s: %s\n", at.UTC().Format(time.RFC3339), e.Type, e.Reason, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Message)
		}
	}
	return out.Bytes(), nil
}

// unpackEvidence returns the files of the agent's archive, below host/.
func unpackEvidence(archive []byte) ([]EvidenceFile, error) {
	unpacked, err := untrusted.Archive(archive)
	if err != nil {
		return nil, err
	}
	var files []EvidenceFile
	for _, file := range unpacked {
		files = append(files, EvidenceFile{"host/" + file.Name, file.Data})
	}
	return files, nil
}

// note keeps an update for the evidence.
func (s *evidence) note(update Update) {
	text := update.Text
	switch {
	case update.Kind == StageBegun:
		text = "begins"
	case update.Kind == StageEnded && update.Failed:
		text = "failed: " + update.Text
	case update.Kind == StageEnded:
		text = "ended after " + update.Elapsed.String()
	case update.Kind == AgentStep:
		text = fmt.Sprintf("step %s %s %s", update.Step.ID, update.Step.State, update.Step.Message)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&s.progress, "%s %s %s\n", update.Time.UTC().Format(time.RFC3339), update.Stage, text)
}

// isWorthEvidence tells whether a failure is one to look into: the host had a part in it, or the node is left for a person.
func (s *evidence) isWorthEvidence(ctx context.Context, err error) bool {
	var failed *Error
	if ctx.Err() != nil || !errors.As(err, &failed) {
		return false
	}
	switch failed.Outcome {
	case OutcomeStuck:
		return true
	case OutcomeRefused, OutcomeRolledBack, OutcomeFailed:
		return s.heard
	default:
		return false
	}
}
