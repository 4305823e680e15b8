package untrusted

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// FuzzRun: a run's ID that is taken is part of a file's name, whoever gave it.
func FuzzRun(f *testing.F) {
	for _, run := range []string{"20240131-120000-abcde", "r1", "../../x", "a/b", "a\\b", "a\x1b[2J", "..", "", "C:x", strings.Repeat("x", 1000)} {
		f.Add(run)
	}
	f.Fuzz(func(t *testing.T, text string) {
		run, err := protocol.ParseRun(text)
		if err != nil {
			return
		}
		name := "kubectl-runtime-node-1-" + run + ".tar.gz"
		if LocalName(name) != nil || strings.ContainsAny(name, `/\`) || filepath.Base(filepath.Clean(name)) != name || !isHarmless(run) {
			t.Errorf("%q was taken", text)
		}
	})
}

// FuzzLocalName: a name that is taken stays below its folder.
func FuzzLocalName(f *testing.F) {
	for _, name := range []string{"a/b", "../a", "/a", "a/../../b", "a//b", `a\..\b`, "a:b", "a\n", ".", "a/."} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if LocalName(name) != nil {
			return
		}
		if path := filepath.Join("/folder", name); !strings.HasPrefix(path, "/folder") || !isHarmless(name) || strings.ContainsAny(name, `\:`) {
			t.Errorf("%q was taken", name)
		}
	})
}

// FuzzLines: lines of any stream are bounded, and those of a short one are all there, in whatever pieces it comes.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb\r\n\n"), uint8(16))
	f.Add(bytes.Repeat([]byte("x"), 100), uint8(20))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		maxLine := 16 + int(size)
		const most = 4 << 10
		var whole, pieces [][]byte
		collect := func(lines *[][]byte) func([]byte) bool {
			return func(line []byte) bool {
				if len(line) > maxLine {
					t.Errorf("a line of %d bytes", len(line))
				}
				*lines = append(*lines, bytes.Clone(line))
				return true
			}
		}
		err := Lines(bytes.NewReader(data), "it", maxLine, most, collect(&whole))
		again := Lines(iotest.OneByteReader(bytes.NewReader(data)), "it", maxLine, most, collect(&pieces))
		if (err != nil) != (len(data) > most) || (err == nil) != (again == nil) {
			t.Errorf("%d bytes: %v, %v", len(data), err, again)
		}
		if err == nil && !bytes.Equal(bytes.Join(whole, []byte("\n")), bytes.Join(pieces, []byte("\n"))) {
			t.Errorf("%q in pieces is %q", whole, pieces)
		}
	})
}

// FuzzText: what is made of a text is bounded and visible.
func FuzzText(f *testing.F) {
	for _, text := range nasty {
		f.Add(text, uint16(100))
	}
	f.Fuzz(func(t *testing.T, text string, size uint16) {
		most := 16 + int(size)
		line, block := Line(text, most), Block(text, 5, most)
		if !isHarmless(line) || len(line) > most {
			t.Errorf("line %q of %d bytes", line, len(line))
		}
		if flat := strings.NewReplacer("\n", "", "\t", "").Replace(block); !isHarmless(flat) || !utf8.ValidString(block) || strings.Count(block, "\n") > 5 {
			t.Errorf("block %q", block)
		}
	})
}
