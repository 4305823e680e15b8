package preflight

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

const (
	// RollingBack is why a switch leaves a node alone.
	RollingBack = "a rollback of it was begun and is not over: `kubectl runtime rollback` resumes it"
	// ByHand is the way back that needs no kubelet. The agent is in the first of these folders that is not mounted noexec
	// (pkg/agent/supervise, binDirs).
	ByHand = "on the node itself, as root: /var/lib/kubectl-runtime/bin/runtime-agent rollback (where /var/lib is mounted noexec, the " +
		"agent is in /usr/local/lib/kubectl-runtime or /opt/kubectl-runtime)"
)

// JudgeRollback looks at a Node alone and says whether it can be rolled back. Force tries it on a node whose kubelet is silent.
func JudgeRollback(node *corev1.Node, force bool) Finding {
	row := inventory.FromNode(node)
	finding := Finding{Node: row.Name, Runtime: row.Reported, State: row.Switch, Cordoned: row.Unschedulable}
	refuse := func(format string, args ...any) Finding {
		finding.Verdict, finding.Unfit, finding.Reason = Refuse, true, fmt.Sprintf(format, args...)
		return finding
	}
	undone := row.Switch == nodestate.StateRolledBack || row.Switch == nodestate.StateFailed
	kubelet, _ := version.Parse(row.KubeletVersion)
	switch {
	case row.BadRun:
		return refuse("%s", inventory.BadRun)
	case row.Run == "":
		return refuse("it was never switched by this program (no annotation %s), so that there is nothing to go back to", nodestate.AnnotationRun)
	case undone && row.Runtime == inventory.RuntimeDocker:
		finding.Verdict, finding.Reason = Skip, fmt.Sprintf("already on %s: its last switch was undone", finding.Runtime)
		return finding
	case undone:
		return refuse("its last switch was undone, and that it runs %s now is not that switch's doing", finding.Runtime)
	case !row.Switch.Open() && row.Switch != nodestate.StateDone && row.Switch != nodestate.StateBroken:
		return refuse("annotation %s is %q, which does not tell how far its switch came", nodestate.AnnotationPhase, row.Switch)
	case row.Runtime != inventory.RuntimeContainerd && row.Runtime != inventory.RuntimeDocker && row.Runtime != "":
		return refuse("it runs %s, which is not what its switch left there", finding.Runtime)
	case kubelet.AtLeast(1, 24) && nodestate.Read(node).FromDockershim:
		return refuse("its kubelet is %s by now, and the dockershim that it came from is gone from Kubernetes 1.24: there is nothing to go back to", row.KubeletVersion)
	case row.Ready != corev1.ConditionTrue && row.Ready != corev1.ConditionFalse && !force:
		return refuse("its kubelet does not report, so that no Job can be expected to start: go back %s; or use --force to try it nevertheless", ByHand)
	}
	if row.Switch == nodestate.StateRollingBack {
		finding.Verdict, finding.Reason = Resume, "an earlier rollback is not over"
	}
	return finding
}

// Rollback is like Switch, for nodes that are to be rolled back.
func (c *Checker) Rollback(ctx context.Context, nodes []corev1.Node, alone bool) ([]Finding, error) {
	findings := make([]Finding, len(nodes))
	for i := range nodes {
		finding := JudgeRollback(&nodes[i], c.Drain.Force)
		if finding.Verdict == Go || finding.Verdict == Resume {
			if err := c.inspect(ctx, &finding, alone, !IsPreparedOnly(finding.State, finding.Runtime)); err != nil {
				return nil, err
			}
		}
		findings[i] = finding
	}
	return findings, nil
}
