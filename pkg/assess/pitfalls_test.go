package assess

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
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
	rows := regexp.MustCompile(`(?m)^\| (\d+) \|`).FindAllStringSubmatch(string(doc), -1)
	for n, row := range rows {
		if row[1] != strconv.Itoa(n+1) {
			t.Errorf("row %d has the number %s", n+1, row[1])
		}
	}
	if len(rows) < 38 {
		t.Errorf("only %d failures", len(rows))
	}
}
