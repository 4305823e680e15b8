// Package nodejob runs the node agent on one node by way of a Kubernetes Job, and proves a node's runtime with a canary pod. The
// manifests are pure functions; the rest creates them, follows the agent's events through the pod's log, and says why a pod
// does not start. It holds no state between calls and decides nothing about a switch: the rollout does, and calls it.
package nodejob

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Namespace is where everything of this program lives. It is fixed, so that every run finds what another left.
const Namespace = "kubectl-runtime"

// The labels of Jobs, their pods and canaries.
const (
	LabelName      = "app.kubernetes.io/name"
	LabelManagedBy = "app.kubernetes.io/managed-by"
	// LabelNode holds a hash of the node's name, which may be longer than a label's value.
	LabelNode  = nodestate.Prefix + "node"
	LabelRun   = nodestate.Prefix + "run"
	LabelPhase = nodestate.Prefix + "phase"

	// annotationImage is the image that a Job was made with. The cluster may have changed that in the Job.
	annotationImage = nodestate.Prefix + "image"

	appName      = "kubectl-runtime"
	agentName    = "runtime-agent"
	agentCommand = "/runtime-agent"
)

// backoffLimit is how often the Job's pod may restart: the Job controller counts the restarts that a change of the runtime
// causes, and a Job that is over its limit would have its pod killed.
const backoffLimit = 20

// ttlSeconds removes a finished Job that nobody came back to.
const ttlSeconds = 3600

// Params is what a Job is made from.
type Params struct {
	Spec       protocol.Spec
	PullPolicy corev1.PullPolicy
	Pod        PodOptions
	// Image is the container's; the Spec's if it is empty. They differ where the cluster gives its pods other images than they ask for: the Spec's is
	// the one that the node has.
	Image string
	// Wait: the pod does not ask the host for the phase before Release.
	Wait bool
}

// PodOptions are what a cluster may demand of this program's pods.
type PodOptions struct {
	// PullSecrets are names of Secrets in Namespace.
	PullSecrets    []string
	ServiceAccount string
	// PriorityClass is for pods of the agent; empty is system-node-critical. The canary has the cluster's default.
	PriorityClass string
}

// applyTo changes a pod accordingly.
func (o PodOptions) applyTo(spec *corev1.PodSpec) {
	for _, name := range o.PullSecrets {
		spec.ImagePullSecrets = append(spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
	}
	spec.ServiceAccountName = o.ServiceAccount
	if spec.PriorityClassName != "" && o.PriorityClass != "" {
		spec.PriorityClassName = o.PriorityClass
	}
}

// Labels are those of everything that belongs to this program.
func Labels() map[string]string {
	return map[string]string{LabelName: appName, LabelManagedBy: appName}
}

// NodeLabels are those of everything that belongs to one node.
func NodeLabels(node string) map[string]string {
	set := Labels()
	set[LabelNode] = hash(node)
	return set
}

// JobName is the name of a phase's Job: the same for every plugin that asks for the same.
func JobName(node, run string, phase protocol.Phase) string {
	return fmt.Sprintf("runtime-%s-%s", phase, hash(node, run, string(phase)))
}

// hash is ten hexadecimal digits.
func hash(parts ...string) string {
	sum := sha256.New()
	for _, part := range parts {
		_, _ = fmt.Fprintf(sum, "%d:%s", len(part), part) // never fails
	}
	return hex.EncodeToString(sum.Sum(nil))[:10]
}

func jobLabels(spec protocol.Spec) map[string]string {
	set := NodeLabels(spec.Node)
	set[LabelRun] = spec.Run
	set[LabelPhase] = string(spec.Phase)
	return set
}

// Job is the manifest of one phase on one node. API servers from 1.17 (oldapi.OldestMinor) and kubelets from 1.18 take it.
func Job(p Params) (*batchv1.Job, error) {
	if err := p.Spec.Validate(); err != nil {
		return nil, err
	}
	spec, err := specFlag(p.Spec)
	if err != nil {
		return nil, err
	}
	args := []string{"supervise", hostFlag, spec}
	if p.Wait {
		args = append(args, waitFlag)
	}
	set := jobLabels(p.Spec)
	image := cmp.Or(p.Image, p.Spec.Image)
	job := &batchv1.Job{
		TypeMeta:   metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: JobName(p.Spec.Node, p.Spec.Run, p.Spec.Phase), Labels: set, Annotations: map[string]string{annotationImage: image}},
		Spec: batchv1.JobSpec{
			BackoffLimit: ptr.To[int32](backoffLimit),
			// No activeDeadlineSeconds: it would kill the pod in the middle of a cutover.
			TTLSecondsAfterFinished: ptr.To[int32](ttlSeconds),
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: set},
				Spec:       agentPod(p.Spec.Node, image, p.PullPolicy, args...),
			},
		},
	}
	p.Pod.applyTo(&job.Spec.Template.Spec)
	if p.Spec.Phase == protocol.PhasePlan {
		onlyLook(&job.Spec)
	}
	return job, nil
}

// Flags of the agent's commands in a pod.
const (
	hostFlag = "--host=/host"
	waitFlag = "--wait"
)

func specFlag(spec protocol.Spec) (string, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return "", fmt.Errorf("encode spec: %w", err)
	}
	return "--spec=" + string(data), nil
}

// Waits reports whether a Job's pod does not ask the host before Release.
func Waits(job *batchv1.Job) bool {
	return slices.ContainsFunc(job.Spec.Template.Spec.Containers, func(container corev1.Container) bool {
		return container.Name == agentName && slices.Contains(container.Args, waitFlag)
	})
}

// planSeconds bounds a Job that only looks, also when nobody waits for it any more.
const planSeconds = 900

// onlyLook makes it a Job that looks at the host and changes nothing there. What is mounted below the host's root stays writable for
// the kernel, and a privileged pod could mount it again, so that this is a second lock; the first is that the agent's plan writes nothing.
func onlyLook(spec *batchv1.JobSpec) {
	spec.BackoffLimit = ptr.To[int32](2)
	spec.ActiveDeadlineSeconds = ptr.To[int64](planSeconds)
	container := &spec.Template.Spec.Containers[0]
	container.Args[0] = "plan"
	container.VolumeMounts[0].ReadOnly = true
}

// agentPod is a pod of the agent's with the host's root directory at /host.
func agentPod(node, image string, pull corev1.PullPolicy, args ...string) corev1.PodSpec {
	return corev1.PodSpec{
		NodeName:                      node,
		HostPID:                       true,
		HostNetwork:                   true,
		Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		PriorityClassName:             "system-node-critical",
		RestartPolicy:                 corev1.RestartPolicyOnFailure,
		TerminationGracePeriodSeconds: ptr.To[int64](5), // the pod only follows the unit on the host
		AutomountServiceAccountToken:  ptr.To(false),
		EnableServiceLinks:            ptr.To(false),
		Containers: []corev1.Container{{
			Name:            agentName,
			Image:           image,
			ImagePullPolicy: pull,
			Command:         []string{agentCommand},
			Args:            args,
			Env: []corev1.EnvVar{
				fieldEnv("POD_NAME", "metadata.name"),
				fieldEnv("POD_NAMESPACE", "metadata.namespace"),
				fieldEnv("POD_UID", "metadata.uid"),
				fieldEnv("NODE_NAME", "spec.nodeName"),
			},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("10m"),
				corev1.ResourceMemory: resource.MustParse("32Mi"),
			}},
			SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)},
			VolumeMounts: []corev1.VolumeMount{{
				Name: "host", MountPath: "/host", MountPropagation: ptr.To(corev1.MountPropagationHostToContainer),
			}},
		}},
		Volumes: []corev1.Volume{{
			Name:         "host",
			VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}},
		}},
	}
}

func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{
		FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path},
	}}
}
