package status

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// newNodeRuntime renders a row for machines.
func newNodeRuntime(row inventory.Row) v1alpha1.NodeRuntime {
	node := v1alpha1.NodeRuntime{
		APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.KindNodeRuntime, Metadata: v1alpha1.NodeRuntimeMetadata{Name: row.Name},
		Status: row.Status(), Ready: row.Ready == "True", Unschedulable: row.Unschedulable,
		Runtime: row.Runtime, RuntimeVersion: row.RuntimeVersion, CRISocket: row.CRISocket, KubeletVersion: row.KubeletVersion,
		OperatingSystem: row.OS, Architecture: row.Architecture, OSImage: row.OSImage, KernelVersion: row.Kernel, InternalIP: row.InternalIP,
	}
	if row.Switch != nodestate.StateNone {
		node.Switch = &v1alpha1.NodeRuntimeSwitch{Phase: string(row.Switch), From: row.From, To: row.To, Run: row.Run, Message: row.Message}
	}
	if row.Advice.ID != inventory.AdviceNone {
		node.Advice = &v1alpha1.NodeRuntimeAdvice{ID: string(row.Advice.ID), Text: row.Advice.Text}
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
	list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": v1alpha1.APIVersion, "kind": v1alpha1.KindNodeRuntimeList}}
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
