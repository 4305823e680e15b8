// Package preflight judges nodes before they are switched or rolled back: whether a node can be, whether an earlier run is resumed, and which pods a
// drain would evict. It changes nothing. package nodeswitch asks it once more when it has claimed a node.
package preflight

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
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

// Checker judges nodes by what the cluster says of them and of what surrounds them.
type Checker struct {
	Client kubernetes.Interface
	Clock  clock.PassiveClock
	Claims *claim.Claims
	// Retry calls a request again while the API server is away.
	Retry func(ctx context.Context, request func() error) error
	Drain drain.Options
	// Image is the agent's.
	Image string
}

// JudgeSwitch looks at a Node alone.
func JudgeSwitch(node *corev1.Node) Finding {
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
		finding.Verdict, finding.Reason = Refuse, RollingBack
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

// Switch judges nodes that are to be switched, without changing anything. Alone says that the cluster has no other node, which
// Drain.Force allows. The error is for what could not be asked; what is wrong with a node is in its Finding.
func (c *Checker) Switch(ctx context.Context, nodes []corev1.Node, alone bool) ([]Finding, error) {
	findings := make([]Finding, len(nodes))
	for i := range nodes {
		finding := JudgeSwitch(&nodes[i])
		if finding.Verdict == Resume {
			why, err := c.WhyNewRun(ctx, &nodes[i])
			if err != nil {
				return nil, err
			}
			if why != "" {
				finding.Verdict, finding.Reason, finding.State = Go, "", ""
			}
		}
		if finding.Verdict == Go || finding.Verdict == Resume {
			late := finding.State == nodestate.StateCutover || finding.State == nodestate.StateVerifying
			if err := c.inspect(ctx, &finding, alone, !late); err != nil {
				return nil, err
			}
		}
		findings[i] = finding
	}
	return findings, nil
}

// inspect looks at what surrounds a node: whose it is, and, where it will be drained, its pods.
func (c *Checker) inspect(ctx context.Context, finding *Finding, alone, drains bool) error {
	other, live, _, err := c.Claims.By(ctx, finding.Node)
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
	if alone && !c.Drain.Force {
		finding.Verdict = Refuse
		finding.Reason = "it is the cluster's only node, and its pods have nowhere to go: use --force to go on nevertheless"
		return nil
	}
	pods, err := drain.New(c.Client, c.Drain, nil, c.Clock.Now).Check(ctx, finding.Node)
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
