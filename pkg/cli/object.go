package cli

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// Printable is an object as kubectl's printers take it. Control characters in it are made visible: the printer of YAML refuses an object
// that has any.
func Printable(object any) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return nil, err
	}
	visible(content)
	return &unstructured.Unstructured{Object: content}, nil
}

// visible makes the texts in a tree of maps and lists visible.
func visible(tree any) any {
	switch node := tree.(type) {
	case string:
		return untrusted.Visible(node)
	case []any:
		for i := range node {
			node[i] = visible(node[i])
		}
	case map[string]any:
		for key := range node {
			node[key] = visible(node[key])
		}
	}
	return tree
}
