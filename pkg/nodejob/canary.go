package nodejob

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

const (
	// canaryMemory is the canary's memory limit in bytes, which it looks for in its cgroup.
	canaryMemory = 64 << 20
	canaryPort   = 8080
	// canaryDeadline ends a canary that nobody removed, in seconds: it has canaryTimeout, and serves until its node is given back.
	canaryDeadline = 600
	// canaryUser owns nothing: an emptyDir is writable for everybody, and nothing else has to be.
	canaryUser = 65534
	// PhaseCanary is the canary's LabelPhase, for Remove; it is no phase of the agent.
	PhaseCanary = "canary"
)

// CanaryParams is what a canary pod is made from.
type CanaryParams struct {
	Node, Run, Image string
	// Attempt tells this canary from others of the run. A pod of the same name may never go: see Runner.Remove.
	Attempt    string
	PullPolicy corev1.PullPolicy
	Pod        PodOptions
	// Started: StartCanary has made the pod.
	Started bool
	// Known are the names of the checks that failed in a Baseline, which do not count.
	Known []string
}

// Canary is the manifest of a pod on the node's pod network that checks what pods rely on: name resolution, the way to the API,
// limits, a volume, a probe. It has no service account token and no privileges. It has no readiness probe, so that its kubelet reports it
// once and not twice: one up to 1.26 sends five requests a second, while the node is out of service.
func Canary(p CanaryParams) *corev1.Pod {
	set := NodeLabels(p.Node)
	set[LabelRun] = p.Run
	set[LabelPhase] = PhaseCanary
	limits := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("100m"),
		corev1.ResourceMemory: *resource.NewQuantity(canaryMemory, resource.BinarySI),
	}
	probe := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(canaryPort)}}
	pod := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: "runtime-canary-" + hash(p.Node, p.Run, PhaseCanary, p.Attempt), Labels: set},
		Spec: corev1.PodSpec{
			NodeName:                      p.Node,
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			RestartPolicy:                 corev1.RestartPolicyNever,
			ActiveDeadlineSeconds:         ptr.To[int64](canaryDeadline),
			TerminationGracePeriodSeconds: ptr.To[int64](1),
			AutomountServiceAccountToken:  ptr.To(false),
			EnableServiceLinks:            ptr.To(false),
			Containers: []corev1.Container{{
				Name:            PhaseCanary,
				Image:           p.Image,
				ImagePullPolicy: p.PullPolicy,
				Command: []string{
					agentCommand, "canary", "serve", "--dir=/data", fmt.Sprintf("--port=%d", canaryPort),
					fmt.Sprintf("--expect-memory-bytes=%d", canaryMemory),
				},
				Ports:     []corev1.ContainerPort{{ContainerPort: canaryPort}},
				Resources: corev1.ResourceRequirements{Requests: limits, Limits: limits},
				// The report says whether a probe came. A container that is killed for it would have none.
				LivenessProbe: &corev1.Probe{ProbeHandler: probe, PeriodSeconds: 1, TimeoutSeconds: 2, FailureThreshold: int32(canaryTimeout / time.Second)},
				VolumeMounts:  []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
				SecurityContext: &corev1.SecurityContext{
					RunAsUser: ptr.To[int64](canaryUser), RunAsGroup: ptr.To[int64](canaryUser), RunAsNonRoot: ptr.To(true),
					ReadOnlyRootFilesystem:   ptr.To(true),
					AllowPrivilegeEscalation: ptr.To(false),
					Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
		},
	}
	p.Pod.applyTo(&pod.Spec)
	return pod
}

// needsDNS reports whether a check resolves a name, which a cluster without a DNS service cannot pass.
func needsDNS(check CanaryCheck) bool { return check.Name == "dns" || check.Name == "api-name" }

// The checks that Prove makes itself: that the pod runs and reports, and that a command can be run in it.
const (
	CheckPod  = "pod"
	CheckExec = "exec"
)

// CanaryCheck is one of the canary's checks.
type CanaryCheck struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Message string `json:"message"`
}

// parseCanary finds the canary's report in its log: one line, {"canary":{"checks":[…]}}.
func parseCanary(log []byte) ([]CanaryCheck, bool) {
	for line := range bytes.SplitSeq(log, []byte("\n")) {
		var report struct {
			Canary *struct {
				Checks []CanaryCheck `json:"checks"`
			} `json:"canary"`
		}
		if json.Unmarshal(line, &report) == nil && report.Canary != nil && len(report.Canary.Checks) > 0 {
			checks := report.Canary.Checks[:min(len(report.Canary.Checks), nodestate.MaxChecks)]
			for i, check := range checks {
				// What failed before is known by this name, also to a run that only reads the node's annotation.
				name := cmp.Or(nodestate.CheckName(check.Name), "unnamed")
				checks[i] = CanaryCheck{Name: name, OK: check.OK, Message: untrusted.Line(check.Message, maxReason)}
			}
			return checks, true
		}
	}
	return nil, false
}
