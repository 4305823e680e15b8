package preview

import (
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestDiff: secrets are on neither side, and where only one differs there is nothing to show.
func TestDiff(t *testing.T) {
	key := func(body string) string {
		return "a\n-----BEGIN PRIVATE KEY-----\n" + strings.Repeat(body+"\n", 20) + "-----END PRIVATE KEY-----\nb\n"
	}
	for _, test := range []struct {
		name     string
		old, new []byte
		want     string
	}{
		{"update", []byte("a\nb\n"), []byte("a\nc\n"), "--- /f\n+++ /f\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"},
		{"create", nil, []byte("a\n"), "--- /dev/null\n+++ /f\n@@ -0,0 +1,1 @@\n+a\n"},
		{"remove", []byte("a\n"), nil, "--- /f\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-a\n"},
		{"secret alone", []byte("password = \"one\"\n"), []byte("password = \"two\"\n"), ""},
		{"secret in context", []byte("auth = \"aGk6dGhlcmU=\"\na\n"), []byte("auth = \"aGk6dGhlcmU=\"\nb\n"), "--- /f\n+++ /f\n@@ -1,2 +1,2 @@\n auth = \"REDACTED\"\n-a\n+b\n"},
		{"in a key", []byte(key("MIIsecret")), []byte(key("MIIsecret") + "c\n"), "--- /f\n+++ /f\n@@ -1,3 +1,4 @@\n a\n REDACTED\n b\n+c\n"},
		{"binary", []byte{0xff, 0}, []byte("a"), "Binary files /f before and after differ\n"},
		{"large", make([]byte, maxDiffed+1), []byte("a"), "Files /f before and after differ, and are too large to show\n"},
	} {
		if got := Diff("/f", test.old, test.new); got != test.want {
			t.Errorf("%s:\n%s", test.name, got)
		}
	}
}

// TestSurveyEvents: each line is one that a kubelet does not split, and the parts of a diff are it again.
func TestSurveyEvents(t *testing.T) {
	long := strings.Repeat("<\x01ü&>\n", 3000)
	s := Survey{
		Findings: []protocol.Finding{{Check: protocol.CheckNote, Message: "m"}},
		Steps:    []protocol.PlanStep{{ID: "a"}},
		Files:    []protocol.FileChange{{Path: "/long", Diff: long}, {Path: "/short", Diff: "x"}},
	}
	diffs := map[string]string{}
	var last protocol.Event
	for i, event := range s.Events(protocol.Spec{Run: "r", Phase: protocol.PhasePlan}, time.Now()) {
		line, err := event.Encode()
		if err != nil || len(line) > 15<<10 {
			t.Fatalf("event %d has %d bytes: %v", i, len(line), err)
		}
		if last, err = protocol.DecodeEvent(line); err != nil || last.Seq != int64(i+1) || last.Run != "r" {
			t.Fatalf("%+v, %v", last, err)
		}
		if f := last.FileChange; f != nil {
			diffs[f.Path] += f.Diff
			if f.Continues == (diffs[f.Path] == long || f.Path == "/short") {
				t.Errorf("continues: %t after %d bytes", f.Continues, len(diffs[f.Path]))
			}
		}
	}
	if diffs["/long"] != long || diffs["/short"] != "x" || last.Result == nil || last.Result.Outcome != protocol.OutcomeSucceeded {
		t.Errorf("%d bytes, %+v", len(diffs["/long"]), last.Result)
	}
}
