package steps

import (
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// changes records what of the files differs from what is on the host.
func changesOf(h *node.Host, files []desired.File) ([]host.Change, error) {
	changes := []host.Change{}
	for _, file := range files {
		change, err := backups(h).Plan(file.Path, file.Old, file.New)
		if err != nil {
			return nil, err
		}
		change.NewMode = file.Mode
		if !change.Unchanged() {
			changes = append(changes, change)
		}
	}
	return changes, nil
}
