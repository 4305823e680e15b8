package nodeswitch

import (
	"fmt"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
)

// Plan says what a switch will do to a node, a sentence each, in order.
func Plan(options Options, finding preflight.Finding) []string {
	var plan []string
	add := func(format string, args ...any) { plan = append(plan, fmt.Sprintf(format, args...)) }
	add("claim: create namespace %s if it is missing, lease %s and the node's %s* annotations", nodejob.Namespace, finding.Node, nodestate.Prefix)
	switch finding.State {
	case nodestate.StateCutover, nodestate.StateVerifying:
		add("resume where the earlier run is: %s", finding.State)
	default:
		add("prepare: run the agent %s in a privileged Job: configure containerd, bring the images, run a pod sandbox through CRI; the node stays in service", options.Image)
		if finding.Cordoned {
			add("drain: the node is cordoned already and stays so; evict %s", podsPhrase(finding.Evict))
		} else {
			add("drain: cordon, evict %s, for at most %s", podsPhrase(finding.Evict), options.Drain.Timeout)
		}
	}
	if finding.State != nodestate.StateVerifying {
		add("cutover: the host stops kubelet and Docker, switches the kubelet to containerd and starts it; undone by itself after %s", options.CutoverTimeout)
	}
	add("verify: node Ready on containerd, the Job's pod and DaemonSet pods back, a canary pod with network, DNS, API, limits, volume, logs and exec, which has run on the old runtime first; else roll back")
	if !finding.Cordoned {
		add("uncordon")
	}
	if options.Soak > 0 {
		add("watch the node for %s", options.Soak)
	}
	add("remove Job, canary and lease; Docker's data and a backup of each changed file stay on the node")
	return plan
}

// PlanRollback says what a rollback will do to a node, a sentence each, in order.
func PlanRollback(options Options, finding preflight.Finding) []string {
	var plan []string
	add := func(format string, args ...any) { plan = append(plan, fmt.Sprintf(format, args...)) }
	add("claim: lease %s in namespace %s", finding.Node, nodejob.Namespace)
	early := preflight.IsPreparedOnly(finding.State, finding.Runtime)
	switch {
	case early:
		add("rollback: run the agent %s in a privileged Job, which has the host undo what was prepared; the node stays in service", options.Image)
	case finding.Cordoned:
		add("drain: the node is cordoned already; evict %s", podsPhrase(finding.Evict))
	default:
		add("drain: cordon, evict %s, for at most %s", podsPhrase(finding.Evict), options.Drain.Timeout)
	}
	if !early {
		add("rollback: run the agent %s in a privileged Job, which has the host stop the kubelet, put the changed files back from their backups and start Docker and the kubelet", options.Image)
	}
	add("verify: node Ready on docker, the Job's pod and DaemonSet pods back, a canary pod with network, DNS, API, limits, volume, logs and exec; else leave it cordoned")
	add("uncordon, if this program has cordoned the node")
	if options.Soak > 0 {
		add("watch the node for %s", options.Soak)
	}
	add("remove Job, canary and lease; the run's directory stays on the node")
	return plan
}

func podsPhrase(pods []string) string {
	switch len(pods) {
	case 0:
		return "no pods"
	case 1:
		return "1 pod: " + pods[0]
	default:
		return fmt.Sprintf("%d pods: %s", len(pods), strings.Join(pods, ", "))
	}
}
