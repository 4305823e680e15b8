package steps

import (
	"bytes"
	"maps"
	"path/filepath"
	"slices"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// plannedFile is what becomes of a file of the host: a step records it as a host.Change, and a plan shows it.
type plannedFile struct {
	path string
	// old is the content that the plan was made from, new that to be; nil stands for a file that is not there.
	old, new []byte
	// mode are the permission bits of a file that is made; 0 means 0644.
	mode uint32
	// link: it is a link by which a unit is enabled; its content is where it points.
	link bool
}

// unchanged reports whether nothing becomes of it.
func (f plannedFile) unchanged() bool {
	return (f.old == nil) == (f.new == nil) && bytes.Equal(f.old, f.new)
}

// resolved is the path of the file itself, as host.Files.Plan finds it.
func (f plannedFile) resolved() string {
	if path, err := filepath.EvalSymlinks(f.path); err == nil && !f.link {
		return path
	}
	return f.path
}

// toBe plans content for a path.
func toBe(path string, content []byte, mode uint32) (plannedFile, error) {
	old, err := host.ReadFile(path)
	return plannedFile{path: path, old: old, new: content, mode: mode}, err
}

// plannedLinks are links that are made, or go.
func plannedLinks(links map[string]string, remove bool) []plannedFile {
	var files []plannedFile
	for _, path := range slices.Sorted(maps.Keys(links)) {
		file := plannedFile{path: path, link: true}
		if remove {
			file.old = []byte(links[path])
		} else {
			file.new = []byte(links[path])
		}
		files = append(files, file)
	}
	return files
}

// changes records what of the files differs from what is on the host.
func changesOf(h *node.Host, files []plannedFile) ([]host.Change, error) {
	changes := []host.Change{}
	for _, file := range files {
		change, err := backups(h).Plan(file.path, file.old, file.new)
		if err != nil {
			return nil, err
		}
		change.NewMode = file.mode
		if !change.Unchanged() {
			changes = append(changes, change)
		}
	}
	return changes, nil
}
