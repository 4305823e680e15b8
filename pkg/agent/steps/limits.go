package steps

import (
	"fmt"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
)

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
