package nodeswitch

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// takeOver has another run take a node from one that sleeps, and come to its cutover.
func takeOver(t *testing.T, s *apiserver.Server, node, run string) {
	t.Helper()
	ctx := context.Background()
	leases := s.Client().CoordinationV1().Leases(nodejob.Namespace)
	for {
		lease, err := leases.Get(ctx, node, metav1.GetOptions{})
		if err != nil {
			t.Error(err)
			return
		}
		lease.Spec.HolderIdentity, lease.Spec.RenewTime = ptr.To("bob@desk/1"), ptr.To(metav1.NowMicro())
		if _, err := leases.Update(ctx, lease, metav1.UpdateOptions{}); err == nil {
			break
		}
	}
	nodes := s.Client().CoreV1().Nodes()
	for {
		object, err := nodes.Get(ctx, node, metav1.GetOptions{})
		if err != nil {
			t.Error(err)
			return
		}
		object.Spec.Unschedulable = true
		object.Annotations[nodestate.AnnotationPhase] = string(nodestate.StateCutover)
		object.Annotations[nodestate.AnnotationWasUnschedulable] = "false"
		if _, err := nodes.Update(ctx, object, metav1.UpdateOptions{}); err == nil {
			break
		}
	}
	job, err := nodejob.Job(nodejob.Params{Spec: protocol.Spec{
		Version: protocol.Version, Run: run, Node: node, Phase: protocol.PhaseVerify, Image: agentImage, CutoverSeconds: 30,
	}})
	if err == nil {
		_, err = s.Client().BatchV1().Jobs(job.Namespace).Create(ctx, job, metav1.CreateOptions{})
	}
	if err != nil {
		t.Error(err)
	}
}

// sleepingClock is the clock of a machine that sleeps now and then.
type sleepingClock struct {
	clock.RealClock
	slept atomic.Int64 // nanoseconds
}

func (c *sleepingClock) Now() time.Time { return c.RealClock.Now().Add(time.Duration(c.slept.Load())) }

func (c *sleepingClock) Since(t time.Time) time.Duration { return c.Now().Sub(t) }

// TestSleeperLeavesTheNode has a run wake in the middle of a stage after another run has taken its node over, as a laptop does whose lid
// was closed: whatever ends the stage, the node and the Jobs are the other run's.
func TestSleeperLeavesTheNode(t *testing.T) {
	t.Parallel()
	s := server.Get(t)
	woken := errors.New("interrupted: test")
	for _, test := range []struct {
		name  string
		back  bool
		stage Stage
		// set has the other run come while the host works; without it, the other comes and the user ends this one.
		set func(h *hollow.Node, other func())
	}{
		{name: "sleeps-in-prepare", stage: StagePrepare, set: func(h *hollow.Node, other func()) {
			h.Script[protocol.PhasePrepare] = func(h *hollow.Node, spec protocol.Spec) {
				other()
				h.Result(spec, protocol.Result{Outcome: protocol.OutcomeRefused, Message: "no"})
			}
		}},
		{name: "sleeps-in-cutover", stage: StageCutover, set: func(h *hollow.Node, other func()) {
			h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) { other(); h.Succeed(spec) }
		}},
		{name: "sleeps-in-undone-cutover", stage: StageCutover, set: func(h *hollow.Node, other func()) {
			h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
				other()
				h.Result(spec, protocol.Result{Outcome: protocol.OutcomeRolledBack, Message: "no"})
			}
		}},
		{name: "sleeps-in-broken-cutover", stage: StageCutover, set: func(h *hollow.Node, other func()) {
			h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
				other()
				h.Result(spec, protocol.Result{Outcome: protocol.OutcomeBroken, Message: "no"})
			}
		}},
		{name: "sleeps-in-drain", stage: StageDrain},
		{name: "sleeps-in-verify", stage: StageVerify},
		{name: "sleeps-in-drain-back", stage: StageDrain, back: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			create, move := hollow.New, (*Switcher).Switch
			if test.back {
				create, move = newSwitched, (*Switcher).Rollback
			}
			h := create(t, s, test.name, func(node *corev1.Node) {
				if test.back {
					left(nodestate.StateDone, false)(node)
				}
			})
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			asleep := &sleepingClock{}
			other := func() {
				asleep.slept.Add(int64(claim.ExpiryProof)) // no other run takes a claim before
				takeOver(t, s, test.name, "bobs")
			}
			observer := &recorder{}
			if test.set != nil {
				test.set(h, other)
			} else {
				createPod(t, s, test.name, test.name, func(pod *corev1.Pod) { pod.Finalizers = []string{"example.com/wait"} })
				t.Cleanup(func() { dropFinalizers(t, s, test.name) })
				observer.onStage = func(stage Stage) {
					switch {
					case stage == test.stage && stage == StageDrain:
						go inMidst(h, stage, func() { other(); cancel(woken) })
					case stage == test.stage:
						other()
					case stage == StageDrain:
						go inMidst(h, stage, func() { dropFinalizers(t, s, test.name) })
					}
				}
			}
			r := newRollout(s, observer)
			r.clock, r.claims.Clock = asleep, asleep
			_, err := move(r, ctx, test.name)
			failed := wantError(t, err, OutcomeFailed, "another run took over the claim on the node; this run left the node to it")
			if failed.Stage != test.stage || failed.Resumable {
				t.Errorf("stage %s, resumable %t", failed.Stage, failed.Resumable)
			}
			node := getNode(t, s, test.name)
			if !node.Spec.Unschedulable || node.Annotations[nodestate.AnnotationPhase] != string(nodestate.StateCutover) || node.Annotations[nodestate.AnnotationWasUnschedulable] != "false" {
				t.Errorf("cordoned %t, annotations %v", node.Spec.Unschedulable, node.Annotations)
			}
			job := nodejob.JobName(test.name, "bobs", protocol.PhaseVerify)
			if _, err := s.Client().BatchV1().Jobs(nodejob.Namespace).Get(context.Background(), job, metav1.GetOptions{}); err != nil {
				t.Errorf("the other run's job: %v", err)
			}
			lease, err := s.Client().CoordinationV1().Leases(nodejob.Namespace).Get(context.Background(), test.name, metav1.GetOptions{})
			if err != nil || *lease.Spec.HolderIdentity != "bob@desk/1" {
				t.Errorf("the other run's claim: %v %v", lease, err)
			}
		})
	}
}
