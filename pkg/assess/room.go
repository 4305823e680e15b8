package assess

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// room compares what a node's pods request with what is free elsewhere. It knows sums alone: neither affinities nor topology, nor that
// a pod has to fit as a whole, so that enough room is no promise; too little is a warning.
type room struct {
	known bool
	// free is what each node has left that takes pods; moving is what each node's pods need elsewhere.
	free, moving map[string]resources
}

// resources are milli-CPUs, bytes of memory, and pods.
type resources struct{ cpu, memory, pods int64 }

func (r resources) plus(o resources, sign int64) resources {
	return resources{r.cpu + sign*o.cpu, r.memory + sign*o.memory, r.pods + sign*o.pods}
}

func newRoom(in Input) room {
	r := room{known: in.Everything && len(in.AllNodes) > 0, free: map[string]resources{}, moving: map[string]resources{}}
	for i := range in.AllNodes {
		node := &in.AllNodes[i]
		if takesPods(node) {
			a := node.Status.Allocatable
			r.free[node.Name] = resources{a.Cpu().MilliValue(), a.Memory().Value(), a.Pods().Value()}
		}
	}
	for i := range in.Pods {
		pod := &in.Pods[i]
		if pod.Spec.NodeName == "" || in.passedOver(pod) {
			continue
		}
		need := requests(pod)
		if free, ok := r.free[pod.Spec.NodeName]; ok {
			r.free[pod.Spec.NodeName] = free.plus(need, -1)
		}
		// One that can run on this node alone waits for it anyway.
		if removedByDrain(pod) && pod.Spec.NodeSelector[corev1.LabelHostname] == "" {
			r.moving[pod.Spec.NodeName] = r.moving[pod.Spec.NodeName].plus(need, 1)
		}
	}
	return r
}

// takesPods leaves out nodes with taints: some pods tolerate them, most do not.
func takesPods(node *corev1.Node) bool {
	ready := slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
	return ready && !node.Spec.Unschedulable && !slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	})
}

// lacks says what the other nodes have too little of for the pods of a node; empty if nothing.
func (r room) lacks(node string) string {
	if !r.known {
		return ""
	}
	var free resources
	for name, f := range r.free {
		if name != node {
			free = free.plus(resources{max(f.cpu, 0), max(f.memory, 0), max(f.pods, 0)}, 1)
		}
	}
	need := r.moving[node]
	var parts []string
	if need.cpu > free.cpu {
		parts = append(parts, fmt.Sprintf("CPU %s of %s free", resource.NewMilliQuantity(need.cpu, resource.DecimalSI), resource.NewMilliQuantity(free.cpu, resource.DecimalSI)))
	}
	if need.memory > free.memory {
		parts = append(parts, fmt.Sprintf("memory %d Mi of %d Mi free", need.memory>>20, free.memory>>20))
	}
	if need.pods > free.pods {
		parts = append(parts, fmt.Sprintf("pods %d of %d free", need.pods, free.pods))
	}
	if len(parts) == 0 {
		return ""
	}
	return "the pods request more than the other nodes have: " + strings.Join(parts, ", ")
}

// requests are what the scheduler counts for a pod (k8s.io/component-helpers resource.PodRequests): the containers and the sidecars that
// stay, or the init container that needs the most beside the sidecars before it, and the overhead.
func requests(pod *corev1.Pod) resources {
	var running, starting resources
	most := func(a, b resources) resources { return resources{max(a.cpu, b.cpu), max(a.memory, b.memory), 0} }
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		need := resources{c.Resources.Requests.Cpu().MilliValue(), c.Resources.Requests.Memory().Value(), 0}
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			running = running.plus(need, 1)
			need = running
		} else {
			need = running.plus(need, 1)
		}
		starting = most(starting, need)
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		running = running.plus(resources{c.Resources.Requests.Cpu().MilliValue(), c.Resources.Requests.Memory().Value(), 0}, 1)
	}
	total := most(running, starting)
	return total.plus(resources{pod.Spec.Overhead.Cpu().MilliValue(), pod.Spec.Overhead.Memory().Value(), 1}, 1)
}
