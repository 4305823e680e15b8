// Package translate reads how Docker Engine was set up on a host (daemon.json, dockerd's flags, its environment) and says what
// becomes of each setting on containerd. It is pure: it reads no files and changes nothing. The agent's steps call it, and
// docs/configuration.md is made from its table.
package translate

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf16"
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
	line, column := f.place(offset)
	return &SyntaxError{File: f.name, Line: line, Column: column, Reason: fmt.Sprintf(format, args...)}
}

func (f file) place(offset int) (line, column int) {
	before := f.data[:min(max(offset, 0), len(f.data))]
	return bytes.Count(before, []byte("\n")) + 1, len(before) - (bytes.LastIndexByte(before, '\n') + 1) + 1
}

// decode returns the text of the file as dockerd reads it (daemon/config, getConflictFreeConfiguration): up to 20.10 byte by byte, from 23.0
// on with a byte order mark of UTF-8 or UTF-16, and nothing that is not UTF-8.
func (f file) decode(before23 bool) (file, error) {
	if len(f.data) > maxFile {
		return f, f.fail(0, "the file has %d bytes; no daemon.json has more than %d", len(f.data), maxFile)
	}
	marked := slices.ContainsFunc([]string{byteOrderMark, "\xff\xfe", "\xfe\xff"}, func(mark string) bool { return bytes.HasPrefix(f.data, []byte(mark)) })
	switch {
	case before23 && marked:
		return f, f.fail(0, "the file begins with a byte order mark, which Docker takes from 23.0 on")
	case before23 && len(bytes.TrimSpace(f.data)) == 0 && f.data != nil:
		return f, f.fail(0, "the file is empty, which Docker takes from 23.0 on")
	case before23:
		f.data = bytes.ToValidUTF8(f.data, []byte("\ufffd"))
		return f, nil
	}
	if marked && !bytes.HasPrefix(f.data, []byte(byteOrderMark)) {
		f.data = fromUTF16(f.data)
	}
	f.data = bytes.TrimPrefix(f.data, []byte(byteOrderMark))
	for i := 0; i < len(f.data); {
		r, size := utf8.DecodeRune(f.data[i:])
		if r == utf8.RuneError && size == 1 {
			return f, f.fail(i, "byte 0x%02x is not UTF-8", f.data[i])
		}
		i += size
	}
	return f, nil
}

// fromUTF16 decodes a text that begins with UTF-16's byte order mark.
func fromUTF16(data []byte) []byte {
	var order binary.ByteOrder = binary.LittleEndian
	if data[0] == 0xfe {
		order = binary.BigEndian
	}
	var units []uint16
	for data = data[2:]; len(data) >= 2; data = data[2:] {
		units = append(units, order.Uint16(data))
	}
	return []byte(string(utf16.Decode(units)))
}

// duplicate is a key that an object has twice.
type duplicate struct {
	name         string
	first, again int // lines
}

// readObject reads the file's object with its places, and lists the keys that are in it, or in an object below it, twice: dockerd takes these
// without a word. What follows the object is an error from Docker 23.0 on, and is not read by earlier ones.
func (f file) readObject(before23 bool) ([]entry, []duplicate, error) {
	if len(bytes.TrimSpace(f.data)) == 0 {
		return nil, nil, nil // an empty file is one without settings
	}
	w := walker{file: f, decoder: json.NewDecoder(bytes.NewReader(f.data))}
	w.decoder.UseNumber()
	at := w.next()
	token, err := w.token()
	if err != nil {
		return nil, nil, err
	}
	var entries []entry
	switch token {
	case nil: // null is an object without keys to encoding/json
	case json.Delim('{'):
		err = w.object(1, func(name string, offset, from, to int) {
			entries = append(entries, entry{name, offset, f.data[from:to]})
		})
		if err != nil {
			return nil, nil, err
		}
	default:
		return nil, nil, f.fail(at, "the file does not hold an object")
	}
	if rest := w.next(); rest < len(f.data) && !before23 {
		return nil, nil, f.fail(rest, "there is something after the object")
	}
	return entries, w.twice, nil
}

type walker struct {
	file
	decoder *json.Decoder
	twice   []duplicate
}

// next is the offset of the next token.
func (w *walker) next() int {
	i := int(w.decoder.InputOffset())
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
		return nil, w.fail(max(at, int(syntax.Offset)-1), "%v", err)
	default:
		return nil, w.fail(at, "%v", err)
	}
}

// object reads on after a brace.
func (w *walker) object(depth int, visit func(name string, offset, from, to int)) error {
	seen := map[string]int{} // the lines
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
		line, _ := w.place(at)
		if first, ok := seen[name]; ok {
			w.twice = append(w.twice, duplicate{name, first, line})
		}
		seen[name] = line
		from := w.next()
		if err := w.value(depth); err != nil {
			return err
		}
		visit(name, at, from, int(w.decoder.InputOffset()))
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
