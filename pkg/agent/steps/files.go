package steps

import (
	"path/filepath"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
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

func backups(h *node.Host) host.Files { return host.Files{Dir: filepath.Join(h.RunDir, "files")} }

// undoable checks that the copies that undoFiles needs are whole.
func undoable(h *node.Host, changes []host.Change) error {
	for _, change := range changes {
		if err := backups(h).Undoable(change); err != nil {
			return err
		}
	}
	return nil
}

// undoFiles puts files back, newest first, and says whose edits it kept.
func undoFiles(h *node.Host, changes []host.Change, report engine.Report) error {
	for i := len(changes) - 1; i >= 0; i-- {
		edited, err := backups(h).Undo(changes[i])
		if edited != "" {
			report.Warn(changes[i].Path + " was edited after the switch; it is back as it was before, and what was edited is in " + edited)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func pathsOf(changes []host.Change) []string {
	var paths []string
	for _, change := range changes {
		paths = append(paths, change.Path)
	}
	return paths
}
