package nodeswitch

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// judgeBack looks at a Node alone and says whether it can be rolled back. Force tries it on a node whose kubelet is silent.
func judgeBack(node *corev1.Node, force bool) Finding {
	row := inventory.FromNode(node)
	finding := Finding{Node: row.Name, Runtime: row.Reported, State: row.Switch, Cordoned: row.Unschedulable}
	refuse := func(format string, args ...any) Finding {
		finding.Verdict, finding.Unfit, finding.Reason = Refuse, true, fmt.Sprintf(format, args...)
		return finding
	}
	undone := row.Switch == nodestate.StateRolledBack || row.Switch == nodestate.StateFailed
	kubelet, _ := inventory.ParseVersion(row.KubeletVersion)
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
		return refuse("its kubelet does not report, so that no Job can be expected to start: go back %s; or use --force to try it nevertheless", byHand)
	}
	if row.Switch == nodestate.StateRollingBack {
		finding.Verdict, finding.Reason = Resume, "an earlier rollback is not over"
	}
	return finding
}

// PreflightRollback is like Preflight, for Rollback.
func (r *Switcher) PreflightRollback(ctx context.Context, nodes []corev1.Node, alone bool) ([]Finding, error) {
	findings := make([]Finding, len(nodes))
	for i := range nodes {
		finding := judgeBack(&nodes[i], r.options.Drain.Force)
		if finding.Verdict == Go || finding.Verdict == Resume {
			if err := r.inspect(ctx, &finding, alone, !isPreparedOnly(finding.State, finding.Runtime)); err != nil {
				return nil, err
			}
		}
		findings[i] = finding
	}
	return findings, nil
}

// PlanRollback says what a rollback will do to a node, a sentence each, in order.
func (r *Switcher) PlanRollback(finding Finding) []string {
	var plan []string
	add := func(format string, args ...any) { plan = append(plan, fmt.Sprintf(format, args...)) }
	add("claim: lease %s in namespace %s", finding.Node, nodejob.Namespace)
	early := isPreparedOnly(finding.State, finding.Runtime)
	switch {
	case early:
		add("rollback: run the agent %s in a privileged Job, which has the host undo what was prepared; the node stays in service", r.options.Image)
	case finding.Cordoned:
		add("drain: the node is cordoned already; evict %s", podsPhrase(finding.Evict))
	default:
		add("drain: cordon, evict %s, for at most %s", podsPhrase(finding.Evict), r.options.Drain.Timeout)
	}
	if !early {
		add("rollback: run the agent %s in a privileged Job, which has the host stop the kubelet, put the changed files back from their backups and start Docker and the kubelet", r.options.Image)
	}
	add("verify: node Ready on docker, the Job's pod and DaemonSet pods back, a canary pod with network, DNS, API, limits, volume, logs and exec; else leave it cordoned")
	add("uncordon, if this program has cordoned the node")
	if r.options.Soak > 0 {
		add("watch the node for %s", r.options.Soak)
	}
	add("remove Job, canary and lease; the run's directory stays on the node")
	return plan
}
