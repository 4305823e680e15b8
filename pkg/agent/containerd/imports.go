package containerd

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Imported is a file that a config imports.
type Imported struct {
	Path string
	Data []byte
}

// ImportError is a file that a config imports and with which the config cannot say what it has to.
type ImportError struct {
	File string
	// Line is 0 where the problem has none.
	Line int
	// Problem is a clause, Cure what to do about it.
	Problem, Cure string
}

func (e *ImportError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Problem)
	}
	return e.File + ": " + e.Problem
}

// Hint returns the cure.
func (e *ImportError) Hint() string { return e.Cure }

// ReadImports reads the files that the config at path imports, and those that they import, each once and in the order in which
// containerd loads them (LoadConfig and resolveImports in cmd/containerd/server/config of 2.4, the same in services/server/config of 1.6):
// all of one file's before those that they import. Only a pattern with an asterisk may match nothing.
func ReadImports(path string, config []byte) ([]Imported, error) {
	var found []Imported
	seen := []string{path}
	pending := []Imported{{path, config}}
	for len(pending) > 0 {
		parent := pending[0]
		pending = pending[1:]
		files, err := importsOf(parent)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if slices.Contains(seen, file) {
				continue
			}
			seen = append(seen, file)
			data, err := os.ReadFile(file) //nolint:gosec // the administrator has containerd read it
			if err != nil {
				return nil, &ImportError{File: parent.Path, Line: lineOf(parent.Data, []string{"imports"}), Problem: fmt.Sprintf("import: %v", err), Cure: "correct imports: containerd itself does not start with it"}
			}
			next := Imported{file, data}
			found, pending = append(found, next), append(pending, next)
		}
	}
	return found, nil
}

func importsOf(parent Imported) ([]string, error) {
	config, err := readTOML(parent.Data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", parent.Path, err)
	}
	patterns, err := stringList(config, "imports")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", parent.Path, err)
	}
	var files []string
	for _, pattern := range patterns {
		pattern = filepath.Clean(pattern)
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(parent.Path), pattern)
		}
		if !strings.Contains(pattern, "*") {
			files = append(files, pattern)
			continue
		}
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("%s: imports %q: %w", parent.Path, pattern, err)
		}
		files = append(files, matches...)
	}
	return files, nil
}

// parseAll reads a config and what it imports into one, in version 2's form.
func parseAll(existing []byte, imported []Imported) (table, error) {
	config, err := parse(existing)
	if err != nil {
		return nil, err
	}
	for _, file := range imported {
		more, err := parse(file.Data)
		if err == nil {
			err = mergeImported(config, more)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file.Path, err)
		}
	}
	return config, nil
}

// mergeImported adds an imported file as containerd 2.x does: tables are merged, lists of plugins united.
func mergeImported(config, imported table) error {
	delete(imported, "imports")
	for _, key := range []string{"disabled_plugins", "required_plugins"} {
		ids, err := stringList(config, key)
		if err != nil {
			return err
		}
		more, err := stringList(imported, key)
		if err != nil {
			return err
		}
		delete(imported, key)
		for _, id := range more {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
		if len(ids) > 0 {
			config[key] = ids
		}
	}
	merge(config, imported)
	return nil
}

// lastWith finds the imported file whose value for a setting of version 2's form counts, and the line.
func lastWith(imported []Imported, path []string, like ...func(value any) bool) (file Imported, line int, ok bool) {
	for _, file := range slices.Backward(imported) {
		config, err := parse(file.Data)
		if err != nil {
			continue
		}
		value := at(config, path...)
		if value == nil || slices.ContainsFunc(like, func(is func(value any) bool) bool { return !is(value) }) {
			continue
		}
		lines, _ := expressionLines(file.Data)
		for written, offset := range lines {
			if is := lineAt(file.Data, offset); under(renamed(strings.Split(written, "\x00"), 0, format{version: 2}), path...) && (line == 0 || is < line) {
				line = is
			}
		}
		return file, line, true
	}
	return Imported{}, 0, false
}

// lineOf is the line on which a file has a setting; 0 if it has none.
func lineOf(data []byte, path []string) int {
	lines, _ := expressionLines(data)
	if offset, ok := lines[join(path)]; ok {
		return lineAt(data, offset)
	}
	return 0
}

func lineAt(data []byte, offset int) int { return 1 + bytes.Count(data[:offset], []byte("\n")) }
