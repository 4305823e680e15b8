package steps

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
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

// TestDockerStopFiles: what is planned is what Hold and RemoveLinks do.
func TestDockerStopFiles(t *testing.T) {
	dir := t.TempDir()
	wants := filepath.Join(dir, "multi-user.target.wants")
	if err := os.Mkdir(wants, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/lib/systemd/system/docker.service", filepath.Join(wants, "docker.service")); err != nil {
		t.Fatal(err)
	}
	systemd := host.Systemd{Dir: dir, Run: nodetest.Says{
		"docker.service":     "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\n",
		"docker.socket":      "LoadState=loaded\nUnitFileState=disabled\nActiveState=active\n",
		"cri-docker.service": "LoadState=not-found\n",
	}}
	h := &node.Host{Systemd: systemd}
	planned, err := dockerStop(h).(step[[]host.UnitState]).planFiles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, file := range planned {
		c := fileChange(file, "docker-stop")
		got = append(got, string(c.Action)+" "+strings.TrimPrefix(c.Path, dir)+" "+c.Link)
	}
	want := []string{"create /docker.socket.d/zz-kubectl-runtime.conf ", "create /docker.service.d/zz-kubectl-runtime.conf ", "remove /multi-user.target.wants/docker.service /lib/systemd/system/docker.service"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if err := systemd.Hold(t.Context(), desired.HoldDocker, "docker.socket", "docker.service"); err != nil {
		t.Fatal(err)
	}
	for _, file := range planned[:2] {
		if now, err := os.ReadFile(file.Path); err != nil || string(now) != string(file.New) {
			t.Errorf("%s: %q, %v", file.Path, now, err)
		}
	}
	if again, err := dockerStop(h).(step[[]host.UnitState]).planFiles(t.Context()); err != nil || !again[0].Unchanged() {
		t.Errorf("%+v, %v", again, err)
	}
	h.Spec.KeepDocker = true
	if kept, err := dockerStop(h).(step[[]host.UnitState]).planFiles(t.Context()); err != nil || len(kept) != 0 {
		t.Errorf("with --keep-docker: %+v, %v", kept, err)
	}
}
