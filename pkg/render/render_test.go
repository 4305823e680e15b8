package render

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run the test with -update and look at the diff", err)
	}
	if got != string(want) {
		t.Errorf("%s differs; run the test with -update and look at the diff. Got:\n%s", name, got)
	}
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var start = time.Date(2024, 1, 31, 12, 0, 0, 0, time.Local)

func step(state protocol.StepState, change ...func(*protocol.Step)) nodeswitch.Update {
	s := &protocol.Step{ID: "images", Title: "Bring the images", State: state}
	for _, c := range change {
		c(s)
	}
	return nodeswitch.Update{Node: "node-1", Stage: nodeswitch.StagePrepare, Kind: nodeswitch.AgentStep, Step: s}
}

// updates are a bit of everything.
func updates() []nodeswitch.Update {
	on := func(stage nodeswitch.Stage, kind nodeswitch.Kind, text string) nodeswitch.Update {
		return nodeswitch.Update{Node: "node-1", Stage: stage, Kind: kind, Text: text}
	}
	return []nodeswitch.Update{
		on(nodeswitch.StagePrepare, nodeswitch.StageBegun, ""),
		step(protocol.StepStarted),
		step(protocol.StepProgress, func(s *protocol.Step) { s.Done, s.Total, s.Unit = 3, 12, "images" }),
		step(protocol.StepDone, func(s *protocol.Step) { s.ElapsedMillis, s.Message = 1560, "12 images" }),
		step(protocol.StepSkipped, func(s *protocol.Step) { s.Message = "nothing to do" }),
		on(nodeswitch.StagePrepare, nodeswitch.Warning, "live-restore is \x1b[31mnot\ncarried over"),
		{Node: "node-1", Stage: nodeswitch.StagePrepare, Kind: nodeswitch.StageEnded, Elapsed: 12300 * time.Millisecond},
		on(nodeswitch.StageCutover, nodeswitch.StageBegun, ""),
		step(protocol.StepFailed, func(s *protocol.Step) { s.Message = "exit status 1" }),
		step(protocol.StepReverting),
		step(protocol.StepReverted, func(s *protocol.Step) { s.ElapsedMillis = 400 }),
		step(protocol.StepRevertFailed, func(s *protocol.Step) { s.Message = "gone" }),
		on(nodeswitch.StageCutover, nodeswitch.Info, "the API server answers again"),
		{Node: "node-1", Stage: nodeswitch.StageCutover, Kind: nodeswitch.StageEnded, Elapsed: 95 * time.Second, Failed: true, Text: "the kubelet does not start"},
	}
}

func TestPlain(t *testing.T) {
	for name, style := range map[string]Style{"plain-unicode.txt": {Unicode: true}, "plain-ascii.txt": {}} {
		var out buffer
		p := NewProgress(&out, style, clocktesting.NewFakeClock(start))
		for _, u := range updates() {
			p.Observe(u)
		}
		p.Close()
		if strings.ContainsAny(out.String(), "\x1b\r") {
			t.Errorf("%s: codes for a terminal: %q", name, out.String())
		}
		if strings.HasSuffix(name, "ascii.txt") {
			for _, r := range out.String() {
				if r > 127 {
					t.Errorf("%s: %q is not ASCII", name, r)
				}
			}
		}
		golden(t, name, out.String())
	}
}

func TestHeartbeat(t *testing.T) {
	var out buffer
	clock := clocktesting.NewFakeClock(start)
	p := NewProgress(&out, Style{}, clock)
	defer p.Close()
	p.Observe(nodeswitch.Update{Node: "node-1", Stage: nodeswitch.StageCutover, Kind: nodeswitch.StageBegun})
	p.Observe(step(protocol.StepStarted))
	before := out.String()
	clock.Step(29 * time.Second)
	if got := out.String(); got != before {
		t.Errorf("a heartbeat after 29 s: %s", got)
	}
	clock.Step(31 * time.Second)
	deadline := time.Now().Add(5 * time.Second)
	for !strings.Contains(out.String(), "still running after 1m00s: Bring the images") {
		if time.Now().After(deadline) {
			t.Fatalf("no heartbeat after 60 s:\n%s", out.String())
		}
		time.Sleep(time.Millisecond)
	}
}

func TestLive(t *testing.T) {
	var out buffer
	clock := clocktesting.NewFakeClock(start)
	p := NewProgress(&out, Style{Live: true, Color: true, Unicode: true, Width: func() int { return 40 }}, clock)
	for _, u := range updates() {
		p.Observe(u)
	}
	p.Close()
	shown := screen(out.String())
	golden(t, "live.txt", shown)
	// The live line has to be gone, and no line may be longer than the terminal while it moves.
	for _, piece := range strings.Split(out.String(), "\r\x1b[K") {
		last := piece[strings.LastIndex(piece, "\n")+1:]
		if len([]rune(last)) > 39 {
			t.Errorf("the live line is wider than the terminal: %q", last)
		}
	}
	if !strings.Contains(out.String(), "\x1b[32m✓\x1b[0m") {
		t.Error("no colour")
	}

	out = buffer{}
	p = NewProgress(&out, Style{Live: true, Unicode: true, Width: func() int { return 80 }}, clock)
	for _, u := range updates() {
		p.Observe(u)
	}
	p.Close()
	if regexp.MustCompile(`\x1b\[[0-9;]*m`).MatchString(out.String()) {
		t.Error("colour without Color")
	}
}

// screen is what a terminal shows in the end.
func screen(output string) string {
	var lines []string
	for _, line := range strings.Split(output, "\n") {
		if i := strings.LastIndex(line, "\r\x1b[K"); i >= 0 {
			line = line[i+len("\r\x1b[K"):]
		}
		lines = append(lines, regexp.MustCompile(`\x1b\[[0-9;]*m`).ReplaceAllString(line, ""))
	}
	return strings.Join(lines, "\n")
}

func TestDetectStyle(t *testing.T) {
	for _, test := range []struct {
		env     map[string]string
		unicode bool
	}{
		{map[string]string{"LANG": "en_US.UTF-8"}, true},
		{map[string]string{"LANG": "de_DE.utf8"}, true},
		{map[string]string{"LANG": "C"}, false},
		{map[string]string{"LANG": "en_US.UTF-8", "LC_ALL": "C"}, false},
		{map[string]string{"LC_CTYPE": "C.UTF-8", "LANG": "C"}, true},
		{nil, false},
	} {
		style := DetectStyle(&bytes.Buffer{}, func(key string) string { return test.env[key] })
		if style.Unicode != test.unicode || style.Live || style.Color {
			t.Errorf("%v: %+v", test.env, style)
		}
	}
}

func TestReport(t *testing.T) {
	golden(t, "report.txt", Report(&nodeswitch.Report{
		Node: "node-1", From: "docker://20.10.24", To: "containerd://1.6.20", OutOfService: 95 * time.Second,
		Stages: []nodeswitch.StageTime{{Stage: nodeswitch.StageClaim, Elapsed: 200 * time.Millisecond}, {Stage: nodeswitch.StagePrepare, Elapsed: 41 * time.Second}},
		Steps: []nodeswitch.StepTime{
			{Phase: protocol.PhasePrepare, ID: "images", Elapsed: 30 * time.Second},
			{Phase: protocol.PhaseCutover, ID: "docker-stop", Elapsed: 400 * time.Millisecond},
			{Phase: protocol.PhaseCutover, ID: "kubelet-start", Elapsed: 3 * time.Second},
			{Phase: protocol.PhaseCutover, ID: "node-ready", Elapsed: 9 * time.Second},
		},
		ChangedFiles: []string{"/etc/containerd/config.toml", "/var/lib/kubelet/kubeadm-flags.env"},
		Warnings:     []string{"live-restore is not carried over"},
	}, "kubectl runtime rollback node-1")+Report(&nodeswitch.Report{Node: "node-2", From: "a", To: "b", Cordoned: true}, ""))
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.0s", 440 * time.Millisecond: "0.4s", 9960 * time.Millisecond: "10s", 59600 * time.Millisecond: "1m00s",
		185 * time.Second: "3m05s", 62 * time.Minute: "1h02m",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}
