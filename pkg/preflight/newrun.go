package preflight

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// rehearsalAge is how long what was prepared and rehearsed is good for: kubelet, containerd and the node's images change meanwhile.
const rehearsalAge = time.Hour

// WhyNewRun says why a switch of a node does not resume the run that its annotations name but starts another one, or returns "" if it
// goes on. The node has an open run.
func (c *Checker) WhyNewRun(ctx context.Context, node *corev1.Node) (string, error) {
	row := inventory.FromNode(node)
	switch row.Switch {
	case nodestate.StatePreparing, nodestate.StatePrepared, nodestate.StateDraining:
		return c.whyPrepareAgain(node, row.Run), nil
	default:
	}
	if row.Switch != nodestate.StateCutover || row.Runtime != inventory.RuntimeDocker || row.Ready != corev1.ConditionTrue {
		return "", nil
	}
	// The host is asked for the cutover by a Job. A node that serves on Docker without one may have been given back by a person since, with
	// pods that nobody has drained. The other way to come here is a cutover that was undone and whose Job is too old to be kept.
	begun := false
	err := c.Retry(ctx, func() error {
		job, err := c.Client.BatchV1().Jobs(nodejob.Namespace).Get(ctx, nodejob.JobName(row.Name, row.Run, protocol.PhaseCutover), metav1.GetOptions{})
		// One whose pod waits was there before; a cordon that is left tells that nobody has given the node back.
		if begun = err == nil && (!nodejob.Waits(job) || node.Spec.Unschedulable); apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("look for the cutover of run %s: %w", row.Run, err)
	}
	if begun {
		return "", nil
	}
	return fmt.Sprintf("the node serves on Docker, and nothing is left of the cutover of run %s", row.Run), nil
}

// whyPrepareAgain judges a run that has not come to its cutover.
func (c *Checker) whyPrepareAgain(node *corev1.Node, run string) string {
	begun, known := nodestate.RunBegun(run)
	age := c.Clock.Now().Sub(begun)
	switch {
	case !known || age > rehearsalAge || age < -rehearsalAge:
		return fmt.Sprintf("what run %s has prepared is older than %s", run, rehearsalAge)
	case nodestate.Read(node).AgentImage != c.Image:
		// The cutover's pod, and its smoke test, need the image that was brought to the new runtime.
		return fmt.Sprintf("run %s was begun with another image of the agent, %s", run, nodestate.Read(node).AgentImage)
	}
	return ""
}

// IsPreparedOnly reports whether a run has not come to its cutover.
func IsPreparedOnly(state nodestate.State, runtimeVersion string) bool {
	switch state {
	case nodestate.StatePreparing, nodestate.StatePrepared, nodestate.StateDraining:
		return strings.HasPrefix(runtimeVersion, inventory.RuntimeDocker+"://")
	default:
		return false
	}
}
