package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestSpecValidate(t *testing.T) {
	good := Spec{Version: Version, Run: "20261123-ab12", Node: "node-1", Phase: PhaseCutover, CutoverSeconds: 300}
	if err := good.Validate(); err != nil {
		t.Fatalf("a good spec: %v", err)
	}
	for _, test := range []struct {
		name   string
		change func(*Spec)
		want   string
	}{
		{"version", func(s *Spec) { s.Version = 2 }, "version 2 is not 1"},
		{"run empty", func(s *Spec) { s.Run = "" }, `run ""`},
		{"run leads out of its directory", func(s *Spec) { s.Run = "../../etc" }, "run"},
		{"image set", func(s *Spec) { s.ImageSet = "some" }, `image set "some"`},
		{"archive", func(s *Spec) { s.ContainerdArchive = "c.tar.gz" }, `archive "c.tar.gz" is no absolute path`},
		{"digest without an archive", func(s *Spec) { s.ContainerdArchiveSHA256 = strings.Repeat("a", 64) }, "is not the SHA-256 of an archive"},
		{"digest", func(s *Spec) { s.ContainerdArchive, s.ContainerdArchiveSHA256 = "/c", "sha256:aa" }, "is not the SHA-256 of an archive"},
		{"node", func(s *Spec) { s.Node = "" }, "node is empty"},
		{"phase", func(s *Spec) { s.Phase = "lunch" }, `unknown phase "lunch"`},
		{"deadline", func(s *Spec) { s.CutoverSeconds = 0 }, "not positive"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := good
			test.change(&s)
			if err := s.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestParseRun(t *testing.T) {
	for _, good := range []string{"20240131-120000-abcde", "r", "r1", strings.Repeat("a", 63)} {
		if got, err := ParseRun(good); got != good || err != nil {
			t.Errorf("%q: %q, %v", good, got, err)
		}
	}
	for _, bad := range []string{
		"", ".", "..", "-", "a-", "-a", "a/b", "x/../../escaped", `a\b`, "a:b", "a b", "A", "a\n", "\na", "a\x00", "a\x1b", "é", strings.Repeat("a", 64), strings.Repeat("x", 1<<20),
	} {
		if _, err := ParseRun(bad); err == nil || len(err.Error()) > 200 {
			t.Errorf("%.80q: %v", bad, err)
		}
	}
}

func TestEventRoundTrip(t *testing.T) {
	want := Event{
		Version: Version, Seq: 7, Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Run: "r", Phase: PhasePrepare,
		Step: &Step{ID: "images", Title: "Bring images", State: StepProgress, Done: 3, Total: 9, Unit: "images"},
	}
	line, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeEvent(line)
	if err != nil {
		t.Fatal(err)
	}
	again, err := got.Encode()
	if err != nil || !bytes.Equal(line, again) {
		t.Errorf("%s became %s (%v)", line, again, err)
	}
}

func TestEncodeKeepsTheEndOfLongDetail(t *testing.T) {
	detail := strings.Repeat("early\n", 10000) + "the reason"
	line, err := Event{Version: Version, Seq: 1, Result: &Result{Outcome: OutcomeRefused, Detail: detail}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(line) > maxLine+1 {
		t.Errorf("a line of %d bytes", len(line))
	}
	e, err := DecodeEvent(line)
	if err != nil || !strings.HasSuffix(e.Result.Detail, "the reason") || !strings.HasPrefix(e.Result.Detail, "…") {
		t.Errorf("detail ends in %q (%v)", e.Result.Detail[max(0, len(e.Result.Detail)-20):], err)
	}
}

// TestEncodeRedacts: no event leaves the host with a secret, whatever wrote it and whatever the text is in.
func TestEncodeRedacts(t *testing.T) {
	const secret, text = "Zq8xW3vN7pLkAb12", "proxy http://bob:Zq8xW3vN7pLkAb12@proxy:3128 with TOKEN_VALUE=Zq8xW3vN7pLkAb12"
	texts := []string{text}
	for _, event := range []Event{
		{Step: &Step{Message: text}},
		{Log: &Log{Level: "info", Message: text}},
		{Facts: &Facts{ContainerdInstall: text, DockerRoot: text, SandboxImage: text, OldEndpoint: text, ForeignContainers: texts, Warnings: texts}},
		{Result: &Result{Message: text, Detail: text, Hint: text, ChangedFiles: texts}},
		{Finding: &Finding{Message: text, Hint: text}},
		{FileChange: &FileChange{Diff: text}},
	} {
		event.Version, event.Seq = Version, 1
		line, err := event.Encode()
		if err != nil || strings.Contains(string(line), secret) || !strings.Contains(string(line), "REDACTED@proxy:3128") {
			t.Errorf("%s, %v", line, err)
		}
	}
	if texts[0] != text {
		t.Error("the caller's texts were changed")
	}
}

func TestDecodeEventRefuses(t *testing.T) {
	for _, line := range []string{"", "null", "{}", `"x"`, "level=info msg=hello", `{"seq":0}`} {
		if _, err := DecodeEvent([]byte(line)); !errors.Is(err, ErrNotEvent) {
			t.Errorf("%q: %v", line, err)
		}
	}
	if _, err := DecodeEvent([]byte(`{"v":9,"seq":1}`)); err == nil || errors.Is(err, ErrNotEvent) || !strings.Contains(err.Error(), "version 9 is not 1") {
		t.Errorf("another version: %v", err)
	}
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add([]byte(`{"v":1,"seq":1,"result":{"outcome":"succeeded"}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := DecodeEvent(line)
		if err != nil {
			return
		}
		if _, err := e.Encode(); err != nil && !errors.As(err, new(*json.MarshalerError)) {
			t.Errorf("decoded, but not encoded: %v", err)
		}
	})
}
