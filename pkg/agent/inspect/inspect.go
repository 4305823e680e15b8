// Package inspect looks at everything before anything is changed, and refuses what cannot be switched safely. Each check is declared in the file
// that its ID names, without "host-" and dashes: host-docker-unit in dockerunit.go. What a check finds is in facts.Found, which later checks and all steps
// go by. A switch stops at the first refusal, a plan runs all checks; neither changes the host.
package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Run runs the checks until one refuses, and returns what they found.
func Run(ctx context.Context, h *node.Host, report engine.Report) (facts.Found, error) {
	i := &inspection{h: h, report: report}
	for _, c := range checks() {
		if err := i.take(ctx, c); err != nil {
			return facts.Found{}, err
		}
	}
	return i.Found, nil
}

// Result is what all checks found.
type Result struct {
	Found    facts.Found
	Findings []protocol.Finding
	// Failed are the IDs of the checks that failed, or could not run without the result of one that did.
	Failed []string
}

// RunAll runs the checks past the first that refuses, for a plan. It changes nothing on the host. The error is that of ctx.
func RunAll(ctx context.Context, h *node.Host) (Result, error) {
	i := &inspection{h: h, report: node.Silent{}}
	for _, c := range checks() {
		if slices.ContainsFunc(c.needs, func(id string) bool { return slices.Contains(i.failed, id) }) {
			i.failed = append(i.failed, c.id)
			continue
		}
		if err := i.take(ctx, c); err != nil && ctx.Err() != nil {
			return Result{}, fmt.Errorf("look at the host: %w", ctx.Err())
		}
	}
	_ = i.take(ctx, spareCheck)
	if f := i.Facts; f.KubeletVersion+f.DockerVersion+f.ContainerdVersion != "" {
		i.note(protocol.CheckVersions, "kubelet %s, Docker %s, containerd %s, %s, kernel %s",
			orUnknown(f.KubeletVersion), orUnknown(f.DockerVersion), orUnknown(f.ContainerdVersion), orUnknown(f.OS), orUnknown(f.Kernel))
	}
	return Result{Found: i.Found, Findings: i.findings, Failed: i.failed}, nil
}

// inspection is one run of the checks.
type inspection struct {
	h      *node.Host
	report engine.Report
	facts.Found
	setup kubelet.Setup
	// daemon is the process of Docker's daemon, nil for the reason findDaemonErr.
	daemon        *host.Process
	findDaemonErr error
	info          docker.Info
	containers    []docker.Container
	images        []docker.Image
	layout        containerd.Layout
	// listsUnknown is set where a switch would fetch newer package lists than a plan may; listsUsed is what an installation goes by.
	listsUnknown, listsUsed string

	current  check
	failed   []string // the IDs of the checks that failed, or could not run
	findings []protocol.Finding
}

// warn is for what the switch does not stop at: a finding, and a warning of the switch.
func (i *inspection) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if slices.Contains(i.Facts.Warnings, text) {
		return
	}
	i.Facts.Warnings = append(i.Facts.Warnings, text)
	i.note(cmp.Or(i.current.warning, protocol.CheckNote), "%s", text)
}

// note is for what only a plan shows.
func (i *inspection) note(check, format string, args ...any) {
	i.findings = append(i.findings, protocol.Finding{Check: check, Message: fmt.Sprintf(format, args...)})
}

// take runs one check; its error is a finding, too.
func (i *inspection) take(ctx context.Context, c check) error {
	i.current = c
	err := c.run(ctx, i)
	if err != nil {
		finding := protocol.Finding{Check: c.id, Message: err.Error()}
		var hinted interface {
			error
			Hint() string
		}
		if errors.As(err, &hinted) {
			finding.Hint = hinted.Hint()
		}
		if errors.Is(err, errNotKnown) {
			finding.Check = protocol.CheckMayInstall
		}
		i.findings = append(i.findings, finding)
		i.failed = append(i.failed, c.id)
	}
	return err
}

func orUnknown(text string) string {
	if text == "" {
		return "<unknown>"
	}
	return text
}
