package inspect

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// helpers are the files that declare no check.
var helpers = []string{"check.go", "inspect.go", "containerdinstall.go"}

// testedElsewhere are the tests of checks whose work another package does, by the check's file.
var testedElsewhere = map[string]string{
	"cni":                "../cni TestDetect",
	"containerdkillmode": "../node TestKillMode",
	"filesystem":         "../host TestTellsTypes",
	"kubelet":            "../kubelet TestEndpoint",
	"kubeletfiles":       "../kubelet TestPlan",
	"limits":             "../desired TestLimitsCarried",
	"registry":           "../desired TestRegistriesInUse",
	"space":              "../facts TestSpaces",
	"swarm":              ". TestLookForForeign",
}

// TestEveryCheckHasItsPlace: a check's file, its row in docs/checks.md and its test are found from its ID.
func TestEveryCheckHasItsPlace(t *testing.T) {
	docs, err := os.ReadFile("../../../docs/checks.md")
	if err != nil {
		t.Fatal(err)
	}
	known := slices.Clone(helpers)
	for _, c := range checks() {
		name := strings.ReplaceAll(strings.TrimPrefix(c.id, "host-"), "-", "")
		known = append(known, name+".go")
		if source, err := os.ReadFile(name + ".go"); err != nil || !strings.Contains(string(source), "Check = check{id: protocol.Check") {
			t.Errorf("%s is not declared in pkg/agent/inspect/%s.go (%v)", c.id, name, err)
		}
		if !strings.Contains(string(docs), "\n## "+c.id+"\n") {
			t.Errorf("docs/checks.md has no %s", c.id)
		}
		if elsewhere, ok := testedElsewhere[name]; ok {
			dir, test, _ := strings.Cut(elsewhere, " ")
			if !hasTest(t, dir, test) {
				t.Errorf("%s: there is no %s in %s", c.id, test, dir)
			}
		} else if _, err := os.Stat(name + "_test.go"); err != nil {
			t.Errorf("%s has no test: %v", c.id, err)
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") && !slices.Contains(known, file) {
			t.Errorf("pkg/agent/inspect/%s is no check's file", file)
		}
	}
}

// hasTest reports whether a package has a test with this name.
func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(file string) bool {
		source, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(source), "\nfunc "+name+"(")
	})
}
