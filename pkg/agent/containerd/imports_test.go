package containerd_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
)

// configDir writes files into a directory; DIR in them stands for it.
func configDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, path, strings.ReplaceAll(text, "DIR", dir))
	}
	return dir
}

func TestReadImports(t *testing.T) {
	dir := configDir(t, map[string]string{
		"config.toml":             "imports = [\"DIR/conf.d/*.toml\", \"./one.toml\", \"none-*.toml\"]\n",
		"conf.d/10.toml":          "imports = [\"nested/*.toml\", \"../config.toml\"]\n",
		"conf.d/20.toml":          "",
		"conf.d/nested/a.toml":    "imports = [\"a.toml\", \"../20.toml\", \"last.toml\"]\n",
		"conf.d/nested/last.toml": "x = 1\n",
		"one.toml":                "",
	})
	main := filepath.Join(dir, "config.toml")
	config, err := os.ReadFile(main)
	if err != nil {
		t.Fatal(err)
	}
	got, err := containerd.ReadImports(main, config)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range got {
		names = append(names, strings.TrimPrefix(file.Path, dir+"/"))
	}
	if diff := cmp.Diff([]string{"conf.d/10.toml", "conf.d/20.toml", "one.toml", "conf.d/nested/a.toml", "conf.d/nested/last.toml"}, names); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	_, err = containerd.ReadImports(main, []byte("version = 2\n\nimports = [\"gone.toml\"]\n"))
	var problem *containerd.ImportError
	if !errors.As(err, &problem) || problem.File != main || problem.Line != 3 || !strings.Contains(err.Error(), dir+"/gone.toml") {
		t.Errorf("a file that is not there: %v", err)
	}
}
