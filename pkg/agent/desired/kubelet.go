package desired

import (
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// KubeletFiles are those that name the kubelet's runtime.
func KubeletFiles(h *node.Host) ([]File, error) {
	found, err := facts.Of(h)
	if err != nil {
		return nil, err
	}
	setup, err := found.Kubelet()
	if err != nil {
		return nil, err
	}
	plan, err := setup.Plan(found.Facts.NewEndpoint)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, edit := range plan {
		files = append(files, File{Path: edit.Path, Old: edit.Old, New: edit.New})
	}
	return files, nil
}
