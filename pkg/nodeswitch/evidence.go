package nodeswitch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/redact"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/runevidence"
)

// evidenceTimeout bounds how long a run that failed asks the cluster and the host why.
const evidenceTimeout = time.Minute

// evidence is what tells why a run failed.
type evidence struct {
	*session
	progress bytes.Buffer // what was observed
}

// gather collects the evidence of why a run failed, and this program's own progress with it.
func (s *evidence) gather(ctx context.Context, failure error) []runevidence.File {
	ctx, cancel := context.WithTimeoutCause(ctx, evidenceTimeout, fmt.Errorf("not done after %s", evidenceTimeout))
	defer cancel()
	s.tell(Info, "gathering evidence of why it failed")
	files := []runevidence.File{{Name: "error.txt", Data: []byte(failureText(failure))}}
	collector := &runevidence.Collector{Client: s.client, Runner: s.runner, Params: nodejob.EvidenceParams{
		Node: s.name, Run: s.run, Image: s.options.Image, PullPolicy: s.options.PullPolicy, Pod: s.options.Pod,
	}}
	gathered, noHost := collector.Gather(ctx)
	if noHost != nil {
		s.tell(Warning, "the evidence has nothing from the host itself: %s", noHost)
	}
	files = append(files, gathered...)
	s.mu.Lock()
	progress := bytes.Clone(s.progress.Bytes())
	s.mu.Unlock()
	files = append(files, runevidence.File{Name: "progress.txt", Data: progress})
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
