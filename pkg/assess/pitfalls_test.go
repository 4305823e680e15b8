package assess

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPitfalls: the tests that docs/pitfalls.md names are there, and all 38 failures are.
func TestPitfalls(t *testing.T) {
	const root = "../.."
	doc, err := os.ReadFile(filepath.Join(root, "docs/pitfalls.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		for _, match := range declared.FindAllSubmatch(data, -1) {
			tests[string(match[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(string(doc), -1) {
		if !tests[name] {
			t.Errorf("there is no test %s", name)
		}
	}
	if rows := len(regexp.MustCompile(`(?m)^\| \d+ \|`).FindAll(doc, -1)); rows != 38 {
		t.Errorf("%d failures", rows)
	}
}
