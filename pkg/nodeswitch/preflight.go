package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// Verdict is what the preflight thinks of a node.
type Verdict int

// The verdicts.
const (
	// Go: the node can be switched. Resume: an earlier run can be resumed.
	Go Verdict = iota
	Resume
	// Skip: there is nothing to do.
	Skip
	// Refuse: a check failed.
	Refuse
)

// Finding is the preflight's verdict on a node.
type Finding struct {
	Node    string
	Verdict Verdict
	// Reason is a sentence without a full stop.
	Reason string
	// Unfit: what refuses is the node's own state, or another run that has it. No flag of a drain changes that. A node that was chosen by a
	// selector and not by its name is then skipped.
	Unfit bool
	// Runtime is what the node reports; State how far an earlier run came.
	Runtime string
	State   nodestate.State
	// Cordoned: the node is cordoned, and stays so. Evict are the pods that a drain would evict, "namespace/name".
	Cordoned bool
	Evict    []string
}

// UnfitError says that a node cannot be moved as it is, or that there is nothing to do.
type UnfitError struct{ Finding Finding }

func (e *UnfitError) Error() string { return e.Finding.Reason }

// judge looks at a Node alone.
func judge(node *corev1.Node) Finding {
	row := inventory.FromNode(node)
	finding := Finding{Node: row.Name, Runtime: row.Reported, State: row.Switch, Cordoned: row.Unschedulable}
	refusal := inventory.Refusal(node)
	late := row.Switch == nodestate.StateCutover || row.Switch == nodestate.StateVerifying
	switch {
	case row.BadRun:
		finding.Verdict, finding.Reason = Refuse, inventory.BadRun
	case row.Switch == nodestate.StateBroken:
		finding.Verdict = Refuse
		finding.Reason = fmt.Sprintf("the last switch could not be undone and a person has to repair the node, then `kubectl runtime rollback %s` tries again: %s",
			row.Name, orUnknown(row.Message))
	case row.Switch == nodestate.StateRollingBack:
		finding.Verdict, finding.Reason = Refuse, rollingBack
	case row.Switch.Open() && row.Run != "" && (late || row.Ready == corev1.ConditionTrue && row.Runtime == inventory.RuntimeDocker):
		finding.Verdict = Resume
		finding.Reason = fmt.Sprintf("an earlier run is %s", row.Switch)
	case row.Runtime == inventory.RuntimeContainerd:
		finding.Verdict = Skip
		finding.Reason = "already on " + finding.Runtime
	case leaving(node) != "":
		finding.Verdict, finding.Reason = Refuse, leaving(node)
	case refusal.ID != inventory.AdviceNone:
		finding.Verdict, finding.Reason = Refuse, refusal.Text
	case row.Runtime == "":
		finding.Verdict, finding.Reason = Refuse, "it does not report a runtime"
	case row.Runtime != inventory.RuntimeDocker:
		finding.Verdict, finding.Reason = Refuse, fmt.Sprintf("it runs %s: only nodes on Docker are switched", finding.Runtime)
	case row.Ready != corev1.ConditionTrue:
		finding.Verdict, finding.Reason = Refuse, "it is not Ready: only a node that works is switched, so that a failure shows"
	}
	finding.Unfit = finding.Verdict == Refuse
	return finding
}

// removalTaints are set by autoscalers on nodes that they are about to remove: ToBeDeletedTaint of cluster-autoscaler
// (utils/taints/taints.go), and Karpenter's disruption taint (pkg/apis/v1/taints.go, and its name up to v1beta1). A mere candidate of
// the cluster autoscaler has another one.
var removalTaints = []string{"ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted", "karpenter.sh/disruption"}

// leaving says why a node is about to leave the cluster; empty if it stays.
func leaving(node *corev1.Node) string {
	if node.DeletionTimestamp != nil {
		return "it is being deleted"
	}
	for _, taint := range node.Spec.Taints {
		if slices.Contains(removalTaints, taint.Key) {
			return fmt.Sprintf("an autoscaler is about to remove it (taint %s)", taint.Key)
		}
	}
	return ""
}

func orUnknown(s string) string {
	if s == "" {
		return "it left no message"
	}
	return s
}

// Preflight judges nodes without changing anything. Alone says that the cluster has no other node, which Options.Drain.Force
// allows. The error is for what could not be asked; what is wrong with a node is in its Finding.
func (r *Switcher) Preflight(ctx context.Context, nodes []corev1.Node, alone bool) ([]Finding, error) {
	findings := make([]Finding, len(nodes))
	for i := range nodes {
		finding := judge(&nodes[i])
		if finding.Verdict == Resume {
			why, err := r.whyNewRun(ctx, &nodes[i])
			if err != nil {
				return nil, err
			}
			if why != "" {
				finding.Verdict, finding.Reason, finding.State = Go, "", ""
			}
		}
		if finding.Verdict == Go || finding.Verdict == Resume {
			late := finding.State == nodestate.StateCutover || finding.State == nodestate.StateVerifying
			if err := r.inspect(ctx, &finding, alone, !late); err != nil {
				return nil, err
			}
		}
		findings[i] = finding
	}
	return findings, nil
}

// inspect looks at what surrounds a node: whose it is, and, where it will be drained, its pods.
func (r *Switcher) inspect(ctx context.Context, finding *Finding, alone, drains bool) error {
	other, live, _, err := r.claims.By(ctx, finding.Node)
	if err != nil {
		return err
	}
	if live {
		finding.Verdict, finding.Unfit, finding.Reason = Refuse, true, other.Error()+`: use --wait to wait until that ends`
		return nil
	}
	if !drains {
		return nil
	}
	if alone && !r.options.Drain.Force {
		finding.Verdict = Refuse
		finding.Reason = "it is the cluster's only node, and its pods have nowhere to go: use --force to go on nevertheless"
		return nil
	}
	pods, err := drain.New(r.client, r.options.Drain, nil, r.clock.Now).Check(ctx, finding.Node)
	if err != nil {
		var status apierrors.APIStatus
		if errors.As(err, &status) {
			return fmt.Errorf("list pods of node %s: %w", finding.Node, err)
		}
		finding.Verdict = Refuse
		finding.Reason = "it cannot be drained: " + strings.ReplaceAll(err.Error(), "\n", "; ")
		return nil
	}
	for i := range pods {
		finding.Evict = append(finding.Evict, pods[i].Namespace+"/"+pods[i].Name)
	}
	return nil
}

// Plan says what a switch will do to a node, a sentence each, in order.
func (r *Switcher) Plan(finding Finding) []string {
	var plan []string
	add := func(format string, args ...any) { plan = append(plan, fmt.Sprintf(format, args...)) }
	add("claim: create namespace %s if it is missing, lease %s and the node's %s* annotations", nodejob.Namespace, finding.Node, nodestate.Prefix)
	switch finding.State {
	case nodestate.StateCutover, nodestate.StateVerifying:
		add("resume where the earlier run is: %s", finding.State)
	default:
		add("prepare: run the agent %s in a privileged Job: configure containerd, bring the images, run a pod sandbox through CRI; the node stays in service", r.options.Image)
		if finding.Cordoned {
			add("drain: the node is cordoned already and stays so; evict %s", podsPhrase(finding.Evict))
		} else {
			add("drain: cordon, evict %s, for at most %s", podsPhrase(finding.Evict), r.options.Drain.Timeout)
		}
	}
	if finding.State != nodestate.StateVerifying {
		add("cutover: the host stops kubelet and Docker, switches the kubelet to containerd and starts it; undone by itself after %s", r.options.CutoverTimeout)
	}
	add("verify: node Ready on containerd, the Job's pod and DaemonSet pods back, a canary pod with network, DNS, API, limits, volume, logs and exec, which has run on the old runtime first; else roll back")
	if !finding.Cordoned {
		add("uncordon")
	}
	if r.options.Soak > 0 {
		add("watch the node for %s", r.options.Soak)
	}
	add("remove Job, canary and lease; Docker's data and a backup of each changed file stay on the node")
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
