package protocol

import "github.com/kubectl-runtime/kubectl-runtime/pkg/redact"

// withoutSecrets is the event as it may leave the host: it goes to a pod's log, which log shippers forward, and to terminals.
func (e Event) withoutSecrets() Event {
	if e.Step != nil {
		step := *e.Step
		step.Message = redact.String(step.Message)
		e.Step = &step
	}
	if e.Log != nil {
		e.Log = &Log{Level: e.Log.Level, Message: redact.String(e.Log.Message)}
	}
	if e.Facts != nil {
		facts := *e.Facts
		for _, text := range []*string{
			&facts.OS, &facts.Kernel, &facts.KubeletVersion, &facts.DockerVersion, &facts.ContainerdVersion, &facts.ContainerdInstall,
			&facts.OldEndpoint, &facts.NewEndpoint, &facts.CgroupDriver, &facts.SandboxImage, &facts.DockerRoot,
		} {
			*text = redact.String(*text)
		}
		facts.ForeignContainers, facts.Warnings = redactAll(facts.ForeignContainers), redactAll(facts.Warnings)
		e.Facts = &facts
	}
	if e.Result != nil {
		result := *e.Result
		result.Message, result.Detail, result.Hint = redact.String(result.Message), redact.String(result.Detail), redact.String(result.Hint)
		result.ChangedFiles = redactAll(result.ChangedFiles)
		e.Result = &result
	}
	if e.Finding != nil {
		finding := *e.Finding
		finding.Message, finding.Hint = redact.String(finding.Message), redact.String(finding.Hint)
		e.Finding = &finding
	}
	if e.FileChange != nil {
		change := *e.FileChange
		change.Diff = redact.String(change.Diff)
		e.FileChange = &change
	}
	return e
}

func redactAll(texts []string) []string {
	var all []string
	for _, text := range texts {
		all = append(all, redact.String(text))
	}
	return all
}
