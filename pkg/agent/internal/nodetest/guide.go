package nodetest

import (
	"os"
	"strings"
	"testing"
)

// ExampleIsInGuide checks that CONTRIBUTING.md shows, word for word, the code of the caller's example_test.go between "// The KIND of
// CONTRIBUTING.md's example." and the test.
func ExampleIsInGuide(t *testing.T, kind string) {
	t.Helper()
	guide, err := os.ReadFile("../../../CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, example, begins := strings.Cut(string(source), "// The "+kind+" of CONTRIBUTING.md's example.\n\n")
	example, _, ends := strings.Cut(example, "\n// TestExample")
	if !begins || !ends || !strings.Contains(string(guide), "```go\n"+example+"```\n") {
		t.Errorf("CONTRIBUTING.md does not have the code of this example:\n%s", example)
	}
}
