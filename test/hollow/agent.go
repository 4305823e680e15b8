package hollow

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// agent plays what a pod asks for, and then ends the pod.
func (h *Node) agent(ctx context.Context, pod *corev1.Pod, spec protocol.Spec) {
	if result := h.play(spec); spec.Phase == protocol.PhaseCutover && result.Outcome == protocol.OutcomeSucceeded && !h.OldAgent {
		spec.Phase = protocol.PhaseVerify
		h.play(spec)
	}
	restarts := int32(0)
	if h.IsOn(inventory.RuntimeContainerd) {
		restarts = 1
	}
	status := h.Running(pod, restarts)
	status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed"}}
	h.SetStatus(ctx, pod, corev1.PodSucceeded, status)
	h.mu.Lock()
	h.ended[pod.Name] = true
	h.mu.Unlock()
}

// play plays a phase that has no result yet, as the host unit would, and returns its result.
func (h *Node) play(spec protocol.Spec) protocol.Result {
	result := func() (found *protocol.Result) {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, event := range h.events {
			if event.Result != nil && event.Phase == spec.Phase && event.Run == spec.Run {
				found = event.Result
			}
		}
		return found
	}
	h.sawPhase(spec.Phase)
	if result() == nil {
		play := h.Script[spec.Phase]
		if play == nil {
			play = func(h *Node, spec protocol.Spec) { h.Succeed(spec) }
		}
		play(h, spec)
	}
	if result() == nil {
		return protocol.Result{}
	}
	return *result()
}

// Emit appends to the event file.
func (h *Node) Emit(spec protocol.Spec, event protocol.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	event.Version, event.Seq, event.Run, event.Phase = protocol.Version, int64(len(h.events)+1), spec.Run, spec.Phase
	event.Time = time.Now().UTC()
	h.events = append(h.events, event)
}

func (h *Node) Result(spec protocol.Spec, result protocol.Result) {
	h.Emit(spec, protocol.Event{Result: &result})
}

// Succeed is what a phase does when all goes well.
func (h *Node) Succeed(spec protocol.Spec) {
	step := func(id string, state protocol.StepState) {
		h.Emit(spec, protocol.Event{Step: &protocol.Step{ID: id, Title: "Step " + id, State: state}})
	}
	switch spec.Phase {
	case protocol.PhasePrepare:
		h.Emit(spec, protocol.Event{Facts: &protocol.Facts{OldEndpoint: "dockershim", NewEndpoint: "unix:///run/containerd/containerd.sock", Warnings: []string{"live-restore is not carried over"}}})
		step("images", protocol.StepStarted)
		step("images", protocol.StepDone)
		h.Result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded, ChangedFiles: []string{"/etc/containerd/config.toml"}})
	case protocol.PhaseCutover:
		step("kubelet-stop", protocol.StepStarted)
		h.SwitchTo(ContainerdVersion)
		step("kubelet-stop", protocol.StepDone)
		h.Result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded, RuntimeVersion: ContainerdVersion, ChangedFiles: []string{"/var/lib/kubelet/kubeadm-flags.env"}})
	case protocol.PhasePlan:
		h.Emit(spec, protocol.Event{Facts: &protocol.Facts{KubeletVersion: "v1.23.17"}})
		h.Emit(spec, protocol.Event{Finding: &protocol.Finding{Check: protocol.CheckDisk, Message: "enough"}})
		h.Emit(spec, protocol.Event{PlanStep: &protocol.PlanStep{Phase: protocol.PhasePrepare, ID: "inspect", Title: "Inspect"}})
		for i, part := range []string{"--- /a\n", "+++ /a\n"} {
			h.Emit(spec, protocol.Event{FileChange: &protocol.FileChange{Path: "/a", Diff: part, Continues: i == 0}})
		}
		h.Emit(spec, protocol.Event{FileChange: &protocol.FileChange{Path: "/b"}})
		h.Result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded})
	case protocol.PhaseVerify:
		h.Result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded})
	case protocol.PhaseRollback:
		h.SwitchTo(DockerVersion)
		h.Result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded, RuntimeVersion: DockerVersion})
	}
}
