// Package translate reads how Docker Engine was set up on a host (daemon.json, dockerd's flags, its environment) and says what
// becomes of each setting on containerd. It is pure: it reads no files and changes nothing. The agent's steps call it, and
// docs/configuration.md is made from its table.
package translate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

const (
	// maxFile is far above any real daemon.json, in bytes.
	maxFile = 1 << 20
	// maxDepth is far above what dockerd knows: four.
	maxDepth = 32
	// byteOrderMark is UTF-8's, which dockerd ignores from 23.0 on.
	byteOrderMark = "\ufeff"
)

// SyntaxError is a place in a file that dockerd would not take either: after a stop it would not start again.
type SyntaxError struct {
	File         string
	Line, Column int // from 1; columns count bytes
	Reason       string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Reason)
}

// entry is a member of the file's object.
type entry struct {
	name   string
	offset int // of its name
	raw    json.RawMessage
}

// file is a text whose offsets can be told as lines and columns.
type file struct {
	name string
	data []byte
}

func (f file) fail(offset int, format string, args ...any) error {
	before := f.data[:min(max(offset, 0), len(f.data))]
	return &SyntaxError{
		File: f.name, Line: bytes.Count(before, []byte("\n")) + 1, Column: len(before) - (bytes.LastIndexByte(before, '\n') + 1) + 1,
		Reason: fmt.Sprintf(format, args...),
	}
}

// readObject reads a JSON object strictly: encoding/json alone would let a repeated key pass, and replace what is not UTF-8.
func (f file) readObject() ([]entry, error) {
	if len(f.data) > maxFile {
		return nil, f.fail(0, "the file has %d bytes; no daemon.json has more than %d", len(f.data), maxFile)
	}
	if bytes.HasPrefix(f.data, []byte("\xff\xfe")) || bytes.HasPrefix(f.data, []byte("\xfe\xff")) {
		return nil, f.fail(0, "the file is UTF-16: save it as UTF-8")
	}
	for i := 0; i < len(f.data); {
		r, size := utf8.DecodeRune(f.data[i:])
		if r == utf8.RuneError && size == 1 {
			return nil, f.fail(i, "byte 0x%02x is not UTF-8", f.data[i])
		}
		i += size
	}
	start := len(f.data) - len(bytes.TrimPrefix(f.data, []byte(byteOrderMark)))
	if len(bytes.TrimSpace(f.data[start:])) == 0 {
		return nil, nil // an empty file is one without settings
	}
	w := walker{file: f, start: start, decoder: json.NewDecoder(bytes.NewReader(f.data[start:]))}
	w.decoder.UseNumber()
	at := w.next()
	token, err := w.token()
	if err != nil {
		return nil, err
	}
	if token != json.Delim('{') {
		return nil, f.fail(at, "the file does not hold an object")
	}
	var entries []entry
	err = w.object(1, func(name string, offset, from, to int) {
		entries = append(entries, entry{name, offset, f.data[from:to]})
	})
	if err != nil {
		return nil, err
	}
	if rest := w.next(); rest < len(f.data) {
		return nil, f.fail(rest, "there is something after the object")
	}
	return entries, nil
}

type walker struct {
	file
	start   int
	decoder *json.Decoder
}

// next is the offset of the next token.
func (w *walker) next() int {
	i := w.start + int(w.decoder.InputOffset())
	for i < len(w.data) && bytes.IndexByte([]byte(" \t\r\n,:"), w.data[i]) >= 0 {
		i++
	}
	return i
}

func (w *walker) token() (json.Token, error) {
	at := w.next()
	token, err := w.decoder.Token()
	var syntax *json.SyntaxError
	switch {
	case err == nil:
		return token, nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, w.fail(len(w.data), "the file ends too early")
	case errors.As(err, &syntax):
		return nil, w.fail(max(at, w.start+int(syntax.Offset)-1), "%v", err)
	default:
		return nil, w.fail(at, "%v", err)
	}
}

// object reads on after a brace.
func (w *walker) object(depth int, visit func(name string, offset, from, to int)) error {
	seen := map[string]bool{}
	for w.decoder.More() {
		at := w.next()
		token, err := w.token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok {
			return w.fail(at, "a key has to be a string")
		}
		if seen[name] {
			return w.fail(at, "the key %q is there twice", name)
		}
		seen[name] = true
		from := w.next()
		if err := w.value(depth); err != nil {
			return err
		}
		visit(name, at, from, w.start+int(w.decoder.InputOffset()))
	}
	_, err := w.token()
	return err
}

func (w *walker) value(depth int) error {
	at := w.next()
	token, err := w.token()
	if err != nil {
		return err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	if depth >= maxDepth {
		return w.fail(at, "values are nested too deeply")
	}
	if delim == '{' {
		return w.object(depth+1, func(string, int, int, int) {})
	}
	for w.decoder.More() {
		if err := w.value(depth + 1); err != nil {
			return err
		}
	}
	_, err = w.token()
	return err
}
