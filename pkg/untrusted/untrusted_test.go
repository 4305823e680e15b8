package untrusted

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"
	"unicode/utf8"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// nasty are texts that a terminal obeys, hides or shows as another one.
var nasty = map[string]string{
	"clipboard":    "\x1b]52;c;ZXZpbA==\x07",
	"colour":       "\x1b[31mred\x1b[0m",
	"clear":        "\x1b[2J\x1b[H",
	"c1":           "\u009b31m\u0090x\u009c",
	"title":        "\x1b]0;root@prod\x1b\\",
	"hyperlink":    "\x1b]8;;http://evil\x07docs\x1b]8;;\x07",
	"bidi":         "safe\u202eexe.tab\u202c\u2066x\u2069\u061c",
	"zero width":   "no\u200bde\ufeff-\u2060one\u00ad",
	"tags":         "a\U000e0041\U000e0042",
	"backspace":    "rm\b\bls",
	"return":       "broken\rfine",
	"nul":          "a\x00b",
	"delete":       "a\x7fb",
	"not utf-8":    "a\xff\xfe\x9b31mb",
	"separators":   "a\u2028b\u2029c\u0085d\vd\fe",
	"erase":        "\r\x1b[K",
	"forged hint":  "fine\nhint: run `curl evil | sh`",
	"forged sign":  "\x1b[32m✓\x1b[0m done",
	"no character": "a\ufffeb\uffff\ufdd0\U0001ffff",
	"shift":        "\x0e\x0f",
	"device query": "\x1b[c\x1b[6n",
}

// isHarmless reports whether a terminal shows a text as it is, in one line.
func isHarmless(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Noncharacter_Code_Point)
	})
}

func TestLine(t *testing.T) {
	for name, text := range nasty {
		if got := Line(text, 1000); !isHarmless(got) {
			t.Errorf("%s: %q", name, got)
		}
	}
	for text, want := range map[string]string{
		"": "", " \n\t ": "", "a": "a", " a\r\n  b\t": "a b", "größe ✓ 節点": "größe ✓ 節点", "a\x1b[0m": `a\u001b[0m`, "\U000e0041": `\udb40\udc41`,
	} {
		if got := Line(text, 1000); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	for _, text := range []string{strings.Repeat("x", 1e6), strings.Repeat("é", 1e6), strings.Repeat("\x1b", 1e6)} {
		if got := Line(text, 100); len(got) > 100 || !utf8.ValidString(got) || !strings.HasSuffix(got, "…") {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	}
}

func TestBlock(t *testing.T) {
	if got, want := Block("one\n\ttwo\x1b[31m\nthree\n\n", 2, 1000), "…\n\ttwo\\u001b[31m\nthree"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Block("one\ntwo", 2, 1000); got != "one\ntwo" {
		t.Errorf("%q", got)
	}
	if got := Block(strings.Repeat("line\n", 1e6)+"the reason", 10, 100); len(got) > 110 || strings.Count(got, "\n") > 10 || !strings.HasSuffix(got, "the reason") {
		t.Errorf("%q", got)
	}
}

// TestWriter: whoever writes, and in whatever pieces, nothing gets through but what the program itself draws with.
func TestWriter(t *testing.T) {
	for name, text := range nasty {
		var whole, pieces bytes.Buffer
		if _, err := io.WriteString(NewWriter(&whole), "before "+text+" after\n"); err != nil {
			t.Fatal(err)
		}
		w := NewWriter(&pieces)
		for i := range len(text) {
			if n, err := w.Write([]byte{text[i]}); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		for _, got := range []string{whole.String(), pieces.String()} {
			got = strings.ReplaceAll(got, "\x1b[32m✓\x1b[0m", "")
			if !isHarmless(strings.NewReplacer("\n", "", "\t", "").Replace(got)) {
				t.Errorf("%s: %q", name, got)
			}
		}
	}
	for _, own := range []string{string(Erase), "\x1b[32m✓\x1b[0m node-1\n", "größe\t✗\n"} {
		var out bytes.Buffer
		if _, err := io.WriteString(NewWriter(&out), own); err != nil || out.String() != own {
			t.Errorf("%q became %q, %v", own, out.String(), err)
		}
	}
	if w := NewWriter(io.Discard); NewWriter(w) != w || w.Unwrap() != io.Discard {
		t.Error("a writer around a writer")
	}
	if _, err := NewWriter(brokenPipe{}).Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v", err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// TestWriterKeepsJSON: what is escaped in JSON is the same text for whoever reads it.
func TestWriterKeepsJSON(t *testing.T) {
	for name, text := range nasty {
		if !utf8.ValidString(text) {
			continue
		}
		data, err := json.Marshal(map[string]string{"text": text})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if _, err := NewWriter(&out).Write(data); err != nil {
			t.Fatal(err)
		}
		var got map[string]string
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || got["text"] != text || !isHarmless(out.String()) {
			t.Errorf("%s: %q, %v", name, out.String(), err)
		}
	}
}

func TestLines(t *testing.T) {
	read := func(text string, maxLine int, most int64) (lines []string, err error) {
		err = Lines(iotest.OneByteReader(strings.NewReader(text)), "the log", maxLine, most, func(line []byte) bool {
			lines = append(lines, string(line))
			return len(lines) < 5
		})
		return lines, err
	}
	long := strings.Repeat("x", 100)
	for text, want := range map[string]string{
		"": "", "a": "a", "a\n": "a", "a\n\nb": "a||b", long + "\nb\n": long[:16] + "|b", long: long[:16], "1\n2\n3\n4\n5\n6\n": "1|2|3|4|5",
		long[:16] + "\nb": long[:16] + "|b",
	} {
		if lines, err := read(text, 16, 1000); err != nil || strings.Join(lines, "|") != want {
			t.Errorf("%q: %q, %v", text, lines, err)
		}
	}
	for _, text := range []string{strings.Repeat("x", 1001), strings.Repeat("x", 16) + strings.Repeat("\n", 2)} {
		if _, err := read(text, 16, 17); !isTooMuch(err) {
			t.Errorf("%d bytes: %v", len(text), err)
		}
	}
	if err := Lines(iotest.ErrReader(io.ErrUnexpectedEOF), "", 16, 100, func([]byte) bool { return true }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
}

func isTooMuch(err error) bool {
	var tooMuch *TooMuchError
	return errors.As(err, &tooMuch)
}

func TestReadAll(t *testing.T) {
	if data, err := ReadAll(strings.NewReader("12345"), "it", 5); string(data) != "12345" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := ReadAll(strings.NewReader("123456"), "it", 5); !isTooMuch(err) {
		t.Errorf("%v", err)
	}
	b := &Buffer{What: "it", Most: 5}
	if _, err := io.Copy(b, iotest.OneByteReader(strings.NewReader("123456"))); !isTooMuch(err) || string(b.Bytes()) != "12345" {
		t.Errorf("%q, %v", b.Bytes(), err)
	}
}

func TestEvent(t *testing.T) {
	text := "x\n" + nasty["clipboard"] + nasty["bidi"] + strings.Repeat("y", 1<<20)
	many := make([]string, 1e5)
	for i := range many {
		many[i] = text[:20]
	}
	event := protocol.Event{
		Version: protocol.Version, Seq: 1, Run: "r1", Phase: protocol.Phase(text),
		Step:   &protocol.Step{ID: text, Title: text, State: protocol.StepState(text), Message: text, Done: -1, Total: -1, Unit: text, ElapsedMillis: 1 << 62},
		Log:    &protocol.Log{Level: text, Message: text},
		Result: &protocol.Result{Outcome: protocol.Outcome(text), FailedStep: text, Message: text, Hint: text, RuntimeVersion: text, ChangedFiles: many, ElapsedMillis: -1},
		Facts: &protocol.Facts{
			OS: text, Kernel: text, KubeletVersion: text, DockerVersion: text, ContainerdVersion: text, ContainerdInstall: text, OldEndpoint: text,
			NewEndpoint: text, CgroupDriver: text, SandboxImage: text, DockerRoot: text, ForeignContainers: many, Warnings: []string{text},
		},
		Finding: &protocol.Finding{Check: text, Message: text, Hint: text}, PlanStep: &protocol.PlanStep{Phase: protocol.Phase(text), ID: text, Title: text},
		FileChange: &protocol.FileChange{Step: text, Path: text, Action: protocol.ChangeAction(text), Mode: text, Link: text},
	}
	line, err := json.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Event(line)
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(out, &tree); err != nil {
		t.Fatal(err)
	}
	eachText(tree, func(text string) {
		if !isHarmless(text) || len(text) > maxText {
			t.Errorf("%d bytes: %.100q", len(text), text)
		}
	})
	if len(out) > 1<<20 || got.Step.Done != 0 || got.Step.ElapsedMillis != maxMillis || got.Result.ElapsedMillis != 0 || got.Facts.NewEndpoint != "" {
		t.Errorf("%d bytes: %+v", len(out), got.Step)
	}
	// Texts of several lines.
	line, err = json.Marshal(protocol.Event{
		Version: protocol.Version, Seq: 1, Run: "r1", Result: &protocol.Result{Detail: "one\n\x1b[31mtwo"}, FileChange: &protocol.FileChange{Diff: "-\ta\n+\tb\x1b\n"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Event(line); err != nil || got.Result.Detail != "one\n\\u001b[31mtwo" || got.FileChange.Diff != "-\ta\n+\tb\\u001b\n" {
		t.Errorf("%+v, %v", got, err)
	}
}

func eachText(tree any, do func(string)) {
	switch node := tree.(type) {
	case string:
		do(node)
	case []any:
		for _, child := range node {
			eachText(child, do)
		}
	case map[string]any:
		for _, child := range node {
			eachText(child, do)
		}
	}
}

func TestEventRefuses(t *testing.T) {
	for line, want := range map[string]string{
		`{"v":2,"seq":1,"run":"r1"}`:               "version 2 is not 1",
		`{"v":1,"seq":1,"run":"../../etc"}`:        "run",
		`{"v":1,"seq":1,"run":"x/../../escaped"}`:  "run",
		`{"v":1,"seq":1,"run":"\u001b]0;evil"}`:    "run",
		`{"v":1,"seq":1}`:                          "run",
		`{"v":1,"seq":-1,"run":"r1"}`:              "negative",
		"\x00":                                     "not an event",
		`{"v":1,"seq":99999999999999999999999999}`: "not an event",
	} {
		_, err := Event([]byte(line))
		if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 300 || !isHarmless(err.Error()) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestEndpoint(t *testing.T) {
	for text, want := range map[string]bool{
		"unix:///run/containerd/containerd.sock": true, "dockershim": true, "/var/run/dockershim.sock": true,
		"": false, "tcp://evil:1": false, "unix://x": false, "unix:///a b": false, "unix:///a\nb": false, "/" + strings.Repeat("a", 300): false,
	} {
		if got := endpoint(text) != ""; got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
}

// pack makes an archive of headers, each with its size of zeros.
func pack(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var data bytes.Buffer
	zip := gzip.NewWriter(&data)
	archive := tar.NewWriter(zip)
	for _, header := range headers {
		header.Mode = 0o600
		if err := archive.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(archive, zeros{}, header.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(archive.Close(), zip.Close()); err != nil {
		t.Fatal(err)
	}
	return data.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestArchive(t *testing.T) {
	files, err := Archive(pack(t, tar.Header{Name: "r1/run/journal.jsonl", Size: 3}, tar.Header{Name: "r1/files/01-a@b.before"}))
	if err != nil || len(files) != 2 || files[0].Name != "r1/run/journal.jsonl" || len(files[0].Data) != 3 {
		t.Errorf("%v, %v", files, err)
	}
	var many, large []tar.Header
	for i := range 501 {
		many = append(many, tar.Header{Name: fmt.Sprint(i)})
	}
	for i := range 9 {
		large = append(large, tar.Header{Name: fmt.Sprint(i), Size: 2 << 20})
	}
	const outside = "is not the name of a file below a folder"
	for _, test := range []struct {
		name, want string
		data       []byte
	}{
		{"not an archive", "gzip", bytes.Repeat([]byte("hello"), 9)},
		{"empty", "EOF", nil},
		{"above", outside, pack(t, tar.Header{Name: "../../.ssh/authorized_keys"})},
		{"above in the middle", outside, pack(t, tar.Header{Name: "a/../../b"})},
		{"absolute", outside, pack(t, tar.Header{Name: "/etc/passwd"})},
		{"Windows", outside, pack(t, tar.Header{Name: `a\..\..\b`})},
		{"drive", outside, pack(t, tar.Header{Name: "C:evil"})},
		{"control", outside, pack(t, tar.Header{Name: "a\x1b[31m"})},
		{"bidi", outside, pack(t, tar.Header{Name: "a\u202e"})},
		{"long", outside, pack(t, tar.Header{Name: strings.Repeat("a/", 1000) + "b"})},
		{"link", "not a regular file", pack(t, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"})},
		{"hard link", "not a regular file", pack(t, tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "b"})},
		{"device", "not a regular file", pack(t, tar.Header{Name: "a", Typeflag: tar.TypeChar})},
		{"directory", outside, pack(t, tar.Header{Name: "a/", Typeflag: tar.TypeDir})},
		{"twice", "twice", pack(t, tar.Header{Name: "a"}, tar.Header{Name: "a"})},
		{"one too large", "larger than", pack(t, tar.Header{Name: "a", Size: 2<<20 + 1})},
		{"too large", "larger than", pack(t, large...)},
		{"bomb", "larger than", pack(t, tar.Header{Name: "a", Size: 100 << 20})},
		{"bomb that is skipped", "larger than", pack(t, tar.Header{Name: "a"}, tar.Header{Name: "b", Size: 100 << 20})},
		{"too many", "more than 500 files", pack(t, many...)},
		{"cut", "EOF", pack(t, tar.Header{Name: "a", Size: 1 << 20})[:600]},
	} {
		files, err := Archive(test.data)
		if err == nil || files != nil || !strings.Contains(err.Error(), test.want) || !isHarmless(err.Error()) || len(err.Error()) > 500 {
			t.Errorf("%s: %d files, %v", test.name, len(files), err)
		}
	}
}

func FuzzEvent(f *testing.F) {
	f.Add([]byte(`{"v":1,"seq":1,"run":"r1","phase":"prepare","result":{"outcome":"succeeded","detail":"a\nb"}}`))
	f.Add([]byte(`{"v":1,"seq":1,"run":"r1","facts":{"warnings":["\u001b"],"newEndpoint":"unix:///a"}}`))
	f.Add([]byte(`{"v":1,"seq":1,"run":"r1","fileChange":{"diff":"-a\n+b","continues":true}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := Event(line)
		if err != nil {
			if !isHarmless(err.Error()) {
				t.Errorf("%q", err.Error())
			}
			return
		}
		data, err := json.Marshal(e)
		if err != nil {
			if !errors.As(err, new(*json.MarshalerError)) { // a year that JSON has no form for
				t.Fatal(err)
			}
			return
		}
		var tree any
		if err := json.Unmarshal(data, &tree); err != nil {
			t.Fatal(err)
		}
		eachText(tree, func(text string) {
			if !isHarmless(strings.NewReplacer("\n", "", "\t", "").Replace(text)) || len(text) > 6*maxBlock {
				t.Errorf("%q", text)
			}
		})
	})
}

func FuzzArchive(f *testing.F) {
	f.Add(pack(f, tar.Header{Name: "a", Size: 5}))
	f.Add(pack(f, tar.Header{Name: "../a", Size: 5}))
	f.Add(pack(f, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "b"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, raw := range [][]byte{data, gzipped(t, data)} { // compressed data rarely survives a change
			files, err := Archive(raw)
			total := 0
			for _, file := range files {
				total += len(file.Data)
				if err := LocalName(file.Name); err != nil {
					t.Error(err)
				}
			}
			if total > maxTotal || err != nil && files != nil {
				t.Errorf("%d bytes, %v", total, err)
			}
		}
	})
}

func gzipped(t *testing.T, data []byte) []byte {
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	if _, err := zip.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func FuzzWriter(f *testing.F) {
	for _, text := range nasty {
		f.Add([]byte(text), uint8(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, cut uint8) {
		var out bytes.Buffer
		w := NewWriter(&out)
		at := int(cut) % (len(data) + 1)
		for _, part := range [][]byte{data[:at], data[at:]} {
			if bytes.Equal(part, Erase) {
				return
			}
			if n, err := w.Write(part); n != len(part) || err != nil {
				t.Fatal(n, err)
			}
		}
		rest := out.Bytes()
		for len(rest) > 0 {
			if n := signLength(rest); n > 0 {
				rest = rest[n:]
				continue
			}
			r, n := utf8.DecodeRune(rest)
			if r != '\n' && r != '\t' && isHidden(r) {
				t.Fatalf("%q", out.Bytes())
			}
			rest = rest[n:]
		}
		if line := Line(string(data), 100); !isHarmless(line) || len(line) > 100 {
			t.Errorf("%q", line)
		}
	})
}
