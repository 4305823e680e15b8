package untrusted

import (
	"bytes"
	"io"
	"slices"
	"sync"
	"unicode/utf8"
)

// codes are all that this program itself sends to a terminal beside text: colours, of which each lasts for one sign, and the removal of
// its live line. Nothing else passes a Writer.
var (
	colours = [][]byte{[]byte("\x1b[32m"), []byte("\x1b[31m"), []byte("\x1b[33m"), []byte("\x1b[2m")}
	reset   = []byte("\x1b[0m")
	// Erase removes the live line. It passes as a write of its own.
	Erase = []byte("\r\x1b[K")
)

// Writer is what stands between this program and a terminal: it makes visible what others may have put into a text, see Visible. JSON
// stays what it means.
type Writer struct {
	mu   sync.Mutex
	out  io.Writer
	rest []byte // the beginning of a character whose end has not been written
}

// NewWriter makes a Writer, or returns the one that it is given.
func NewWriter(out io.Writer) *Writer {
	if w, ok := out.(*Writer); ok {
		return w
	}
	return &Writer{out: out}
}

// Unwrap is where the Writer writes to.
func (w *Writer) Unwrap() io.Writer { return w.out }

// Write writes all of p, or returns an error.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if bytes.Equal(p, Erase) {
		return w.out.Write(p)
	}
	text := slices.Concat(w.rest, p)
	w.rest = nil
	if n := unfinished(text); n > 0 {
		text, w.rest = text[:len(text)-n], text[len(text)-n:]
	}
	var out bytes.Buffer
	for len(text) > 0 {
		at := bytes.IndexByte(text, '\x1b')
		if at < 0 {
			at = len(text)
		}
		out.WriteString(Visible(string(text[:at])))
		if text = text[at:]; len(text) > 0 {
			n := signLength(text)
			if n > 0 {
				out.Write(text[:n])
			} else {
				n = 1
				out.WriteString(Visible(string(text[:n])))
			}
			text = text[n:]
		}
	}
	if _, err := w.out.Write(out.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// signLength is the length of a coloured character at the beginning of text, 0 if there is none.
func signLength(text []byte) int {
	for _, colour := range colours {
		sign, ok := bytes.CutPrefix(text, colour)
		if !ok {
			continue
		}
		r, n := utf8.DecodeRune(sign)
		if r == utf8.RuneError || isHidden(r) || !bytes.HasPrefix(sign[n:], reset) {
			return 0
		}
		return len(colour) + n + len(reset)
	}
	return 0
}

// unfinished is the length of a character at the end of text whose last bytes are missing.
func unfinished(text []byte) int {
	for n := 1; n <= min(utf8.UTFMax-1, len(text)); n++ {
		if last := text[len(text)-n:]; utf8.RuneStart(last[0]) {
			if utf8.FullRune(last) {
				return 0
			}
			return n
		}
	}
	return 0
}
