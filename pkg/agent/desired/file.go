// Package desired makes files of facts: what containerd's and the kubelet's configuration, the kernel's settings and the units' drop-ins
// are to be on containerd. A step records what differs from the host, and a plan shows it; both take it from here. It reads the host, and
// writes nothing.
package desired

import (
	"bytes"
	"maps"
	"path/filepath"
	"slices"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// File is what becomes of a file of the host: a step records it as a host.Change, and a plan shows it.
type File struct {
	Path string
	// Old is the content that the plan was made from, New that to be; nil is a file that does not exist.
	Old, New []byte
	// Mode are the permission bits of a file that is made; 0 means 0644.
	Mode uint32
	// Link: it is a link by which a unit is enabled; its content is where it points.
	Link bool
}

// Unchanged reports whether nothing becomes of it.
func (f File) Unchanged() bool {
	return (f.Old == nil) == (f.New == nil) && bytes.Equal(f.Old, f.New)
}

// Resolved is the path of the file itself, as host.Files.Plan finds it.
func (f File) Resolved() string {
	if path, err := filepath.EvalSymlinks(f.Path); err == nil && !f.Link {
		return path
	}
	return f.Path
}

// NewFile plans content for a path.
func NewFile(path string, content []byte, mode uint32) (File, error) {
	old, err := host.ReadFile(path)
	return File{Path: path, Old: old, New: content, Mode: mode}, err
}

// Links are links that are made, or go.
func Links(links map[string]string, remove bool) []File {
	var files []File
	for _, path := range slices.Sorted(maps.Keys(links)) {
		file := File{Path: path, Link: true}
		if remove {
			file.Old = []byte(links[path])
		} else {
			file.New = []byte(links[path])
		}
		files = append(files, file)
	}
	return files
}
