package journal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var me = Identity{Run: "r1", Node: "node-1", Machine: "m1"}

func open(t *testing.T, dir string) *Journal {
	t.Helper()
	j, err := Open(dir, me)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func sample(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	j := open(t, dir)
	for _, r := range []Record{
		{Kind: KindOpen, Phase: protocol.PhasePrepare, Deadline: time.Unix(1e9, 0).UTC()},
		{Kind: KindIntent, Phase: protocol.PhasePrepare, Step: "a", Memo: []byte(`{"x":1}`)},
		{Kind: KindDone, Phase: protocol.PhasePrepare, Step: "a"},
	} {
		if err := j.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestTornAnywhere cuts the file at every byte: whole lines stay, the rest goes, and appending works afterwards.
func TestTornAnywhere(t *testing.T) {
	data := sample(t)
	for cut := range data {
		for _, tail := range []string{"", "\x00\x00\x00"} {
			dir := t.TempDir()
			torn := append(bytes.Clone(data[:cut]), tail...)
			if err := os.WriteFile(filepath.Join(dir, FileName), torn, 0o600); err != nil {
				t.Fatal(err)
			}
			want := max(0, bytes.Count(data[:cut], []byte("\n"))-1)
			j := open(t, dir)
			if len(j.Records()) != want {
				t.Fatalf("cut at %d: %d records, want %d", cut, len(j.Records()), want)
			}
			if err := j.Append(Record{Kind: KindDone, Phase: protocol.PhasePrepare, Step: "b"}); err != nil {
				t.Fatal(err)
			}
			id, records, err := Read(dir)
			if err != nil || id != me || len(records) != want+1 || records[want].Step != "b" {
				t.Fatalf("cut at %d, read again: %v %v %v", cut, id, records, err)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	good := sample(t)
	lines := strings.SplitAfter(string(good), "\n")
	for _, test := range []struct{ name, data, want string }{
		{"damage in the middle", lines[0] + lines[1] + "{\"kind\":\x00\n" + lines[3], "line 3: damaged"},
		{"unknown kind in the middle", lines[0] + `{"kind":"dance"}` + "\n" + lines[1], `unknown kind "dance"`},
		{"damaged head", "?\n" + lines[1], "line 1: damaged"},
		{"head missing", lines[1] + lines[2], "not the head"},
		{"newer version", strings.Replace(lines[0], `"version":1`, `"version":2`, 1), "newer"},
		{"other machine", strings.Replace(lines[0], "m1", "m2", 1), "cloned"},
		{"other node", strings.Replace(lines[0], "node-1", "node-2", 1), "node-2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, FileName)
			if err := os.WriteFile(path, []byte(test.data), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir, me)
			if !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			if now, _ := os.ReadFile(path); string(now) != test.data {
				t.Errorf("the file was changed to %q", now)
			}
		})
	}
}

// TestLost: a journal without records is new only as long as nothing has happened.
func TestLost(t *testing.T) {
	head := strings.SplitAfter(string(sample(t)), "\n")[0]
	for _, data := range []string{"", head, head[:10], "absent"} {
		for _, happened := range []bool{false, true} {
			dir := t.TempDir()
			if data != "absent" {
				if err := os.WriteFile(filepath.Join(dir, FileName), []byte(data), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			events, err := OpenEvents(dir, "r1", time.Now)
			if err != nil {
				t.Fatal(err)
			}
			if happened {
				if err := events.Append(protocol.Event{Phase: protocol.PhaseCutover, Log: &protocol.Log{Message: "m"}}); err != nil {
					t.Fatal(err)
				}
			}
			_ = events.Close()
			_, _, readErr := Read(dir)
			_, openErr := Open(dir, me)
			for _, err := range []error{readErr, openErr} {
				if errors.Is(err, ErrUnusable) != happened || happened && !strings.Contains(err.Error(), "phase cutover of run r1 began") {
					t.Errorf("%q, events: %t: %v", data, happened, err)
				}
			}
		}
	}
}

func TestEventsContinue(t *testing.T) {
	dir := t.TempDir()
	now := func() time.Time { return time.Unix(1e9, 0) }
	path := filepath.Join(dir, EventsName)
	for life := range 3 {
		e, err := OpenEvents(dir, "r1", now)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := e.Append(protocol.Event{Phase: protocol.PhasePrepare, Log: &protocol.Log{Level: "info", Message: "hello"}}); err != nil {
				t.Fatal(err)
			}
		}
		if _, ok := e.Result(protocol.PhasePrepare); ok != (life > 1) {
			t.Errorf("life %d: result is there: %t", life, ok)
		}
		if life == 1 {
			if err := e.Append(protocol.Event{Phase: protocol.PhasePrepare, Result: &protocol.Result{Outcome: protocol.OutcomeRefused}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(`{"v":1,"seq":99,"torn`); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(data, []byte("\n"))
	for i, line := range lines[:len(lines)-1] {
		event, err := protocol.DecodeEvent(line)
		if err != nil || event.Seq != int64(i+1) {
			t.Errorf("line %d: event %d, %v", i+1, event.Seq, err)
		}
	}
	if len(lines) != 8 {
		t.Errorf("%d lines", len(lines))
	}
}
