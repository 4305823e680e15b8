package steps

import (
	"context"
	"fmt"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// rehearsal runs a sandbox and a container on the new runtime and removes them, before the drain, which has time for all images.
func rehearsal(h *node.Host) engine.Step {
	const id = "rehearsal"
	return step[nothing]{
		id: id, title: "Rehearse: run a pod sandbox on containerd", record: recordNothing,
		apply: func(ctx context.Context, _ nothing, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			if _, err := waitForCRI(ctx, h, found, cri.Report.Ready); err != nil {
				return err
			}
			if err := tryRegistries(ctx, h, found, report); err != nil {
				return err
			}
			options := smokeOptions(h, found, id, report)
			if len(found.PodLimits) > 0 {
				options.Look = func(p cri.Processes) { compareLimits(found, p, report) }
			}
			return runSmoke(ctx, h, found, options, createdFrom, report)
		},
	}
}

// compareLimits has what differs reported: it is no reason to leave the node on Docker for.
func compareLimits(found facts.Found, p cri.Processes, report engine.Report) {
	differ, err := desired.DifferingLimits(found.PodLimits, p)
	if err != nil {
		report.Info(fmt.Sprintf("a pod's limits on containerd are not known: %v", err))
	}
	for _, text := range differ {
		report.Warn(text)
	}
}

// createdFrom are the images that the rehearsal makes a container from: those that Docker had, and that containerd therefore has.
func createdFrom(ctx context.Context, h *node.Host, c *cri.Client) ([]string, error) {
	var memo importMemo
	raw, ok := engine.LastMemo(h.Records(), imagesID)
	if !ok {
		return nil, nil
	}
	if err := with(imagesID, raw, func(m importMemo) error { memo = m; return nil }); err != nil {
		return nil, err
	}
	var refs []string
	for _, ref := range memo.Refs {
		there, err := c.HasImage(ctx, ref)
		if err != nil {
			return nil, err
		}
		if there {
			refs = append(refs, ref)
		}
	}
	return refs, nil
}
