package layers

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// privateWords are phrases that a reader of kubernetes.io does not know, with what to write for them.
var privateWords = []struct{ phrase, better string }{
	{`\banew\b`, "again"},
	{`\b(go|goes|going|gone) on with\b`, "resume, continue"},
	{`\b(is|are|was|were) told\b`, "is reported, gets"},
	{`\bsuch are\b`, "these are"},
	{`\bstands for itself\b`, "say what it is"},
	{`\bfor who\b`, "for users who"},
}

// TestPlainWords reads the repository's Go files, pages and scripts, but this one.
func TestPlainWords(t *testing.T) {
	list, err := exec.Command("git", "-C", "../..", "ls-files", "-z", "--", "*.go", "*.md", "*.sh", "hack/*").Output()
	if err != nil {
		t.Skipf("the files of the repository are not known: %v", err)
	}
	for file := range strings.SplitSeq(strings.Trim(string(list), "\x00"), "\x00") {
		if file == "test/layers/words_test.go" {
			continue
		}
		text, err := os.ReadFile("../../" + file)
		if os.IsNotExist(err) { // removed and not committed
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range privateWords {
			for _, at := range regexp.MustCompile(word.phrase).FindAllIndex(text, -1) {
				t.Errorf("%s:%d: %q: write: %s", file, 1+strings.Count(string(text[:at[0]]), "\n"), text[at[0]:at[1]], word.better)
			}
		}
	}
}
