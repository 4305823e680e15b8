package status

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// The kinds of the machine-readable status.
const (
	nodeKind = "NodeRuntime"
	listKind = "NodeRuntimeList"
)

// NodeRuntimeList is what `status -o json` prints.
type NodeRuntimeList struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Items      []NodeRuntime `json:"items"`
	// Errors says what is missing from Items, a sentence each.
	Errors []string `json:"errors,omitempty"`
}

// NodeRuntime is one node. Fields that the node does not report are left out.
type NodeRuntime struct {
	APIVersion string              `json:"apiVersion"`
	Kind       string              `json:"kind"`
	Metadata   NodeRuntimeMetadata `json:"metadata"`
	// Status is as in `kubectl get nodes`: "Ready,SchedulingDisabled".
	Status        string `json:"status"`
	Ready         bool   `json:"ready"`
	Unschedulable bool   `json:"unschedulable"`
	// Runtime is docker, containerd or cri-o; RuntimeVersion as the runtime spells it.
	Runtime        string `json:"runtime,omitempty"`
	RuntimeVersion string `json:"runtimeVersion,omitempty"`
	// CRISocket is kubeadm's annotation, where there is one.
	CRISocket       string             `json:"criSocket,omitempty"`
	KubeletVersion  string             `json:"kubeletVersion,omitempty"`
	OperatingSystem string             `json:"operatingSystem,omitempty"`
	Architecture    string             `json:"architecture,omitempty"`
	OSImage         string             `json:"osImage,omitempty"`
	KernelVersion   string             `json:"kernelVersion,omitempty"`
	InternalIP      string             `json:"internalIP,omitempty"`
	Switch          *NodeRuntimeSwitch `json:"switch,omitempty"`
	Advice          *NodeRuntimeAdvice `json:"advice,omitempty"`
}

// NodeRuntimeMetadata has the node's name.
type NodeRuntimeMetadata struct {
	Name string `json:"name"`
}

// NodeRuntimeSwitch is how far a switch is or how the last one ended.
type NodeRuntimeSwitch struct {
	Phase   string `json:"phase"`
	From    string `json:"from,omitempty"`
	To      string `json:"to,omitempty"`
	Run     string `json:"run,omitempty"`
	Message string `json:"message,omitempty"`
}

// NodeRuntimeAdvice is what to do about the node; inventory.AdviceID lists the IDs.
type NodeRuntimeAdvice struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

// newNodeRuntime renders a row for machines.
func newNodeRuntime(row inventory.Row) NodeRuntime {
	node := NodeRuntime{
		APIVersion: cli.APIVersion, Kind: nodeKind, Metadata: NodeRuntimeMetadata{Name: row.Name},
		Status: row.Status(), Ready: row.Ready == "True", Unschedulable: row.Unschedulable,
		Runtime: row.Runtime, RuntimeVersion: row.RuntimeVersion, CRISocket: row.CRISocket, KubeletVersion: row.KubeletVersion,
		OperatingSystem: row.OS, Architecture: row.Architecture, OSImage: row.OSImage, KernelVersion: row.Kernel, InternalIP: row.InternalIP,
	}
	if row.Switch != nodestate.StateNone {
		node.Switch = &NodeRuntimeSwitch{Phase: string(row.Switch), From: row.From, To: row.To, Run: row.Run, Message: row.Message}
	}
	if row.Advice.ID != inventory.AdviceNone {
		node.Advice = &NodeRuntimeAdvice{ID: string(row.Advice.ID), Text: row.Advice.Text}
	}
	return node
}

// objectOf is a row as kubectl's printers take it.
func objectOf(row inventory.Row) (*unstructured.Unstructured, error) {
	node := newNodeRuntime(row)
	object, err := cli.Printable(&node)
	if err != nil {
		return nil, fmt.Errorf("render node %s: %w", row.Name, err)
	}
	return object, nil
}

// objectsOf is all rows as kubectl's printers take them, with what went wrong.
func objectsOf(rows []inventory.Row, failure error) (*unstructured.UnstructuredList, error) {
	list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": cli.APIVersion, "kind": listKind}}
	if failure != nil {
		list.Object["errors"] = []any{untrusted.Visible(failure.Error())}
	}
	for _, row := range rows {
		object, err := objectOf(row)
		if err != nil {
			return nil, err
		}
		list.Items = append(list.Items, *object)
	}
	return list, nil
}

// nodeReference is a row for -o name, which prints "node/NAME" so that kubectl's commands take it.
func nodeReference(row inventory.Row) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: row.Name},
	}
}
