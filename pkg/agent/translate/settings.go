package translate

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// setting is a value that is in force.
type setting struct {
	Key
	// where it was set, for people: FILE:LINE:COLUMN, or a flag.
	where string
	fail  func(format string, args ...any) error
	raw   json.RawMessage
	// before23 tells that a Docker up to 20.10 reads it.
	before23 bool
}

func (s setting) decode(to any) error {
	if err := json.Unmarshal(s.raw, to); err != nil {
		return s.fail("the value of %s is of the wrong type", s.Name)
	}
	return nil
}

// before23 tells whether dockerd is one that cannot be asked whether it takes its configuration, and reads daemon.json byte by byte.
func (in Input) before23() bool { return in.Version != "" && !version.AtLeast(in.Version, 23, 0) }

// readFile reads the settings in daemon.json.
func (t *translation) readFile(in Input) ([]setting, error) {
	f, err := file{in.File, in.Data}.decode(in.before23())
	if err != nil {
		return nil, err
	}
	entries, twice, err := f.readObject(in.before23())
	if err != nil {
		return nil, err
	}
	for _, d := range twice {
		t.find(d.name, Warned, fmt.Sprintf("%s has it twice, in the lines %d and %d: dockerd, and so containerd, takes the later value, or of two objects what either holds. "+
			"Remove one of them", in.File, d.first, d.again))
	}
	var set []setting
	for _, e := range entries {
		fail := func(format string, args ...any) error { return f.fail(e.offset, format, args...) }
		if err := in.unknown(e, fail); err != nil {
			return nil, err
		}
		key, ok := keyNamed(e.name)
		if !ok {
			t.find(e.name, Warned, "unknown key in "+in.File+": what it does for pods is not known")
			continue
		}
		line, column := f.place(e.offset)
		s := setting{key, fmt.Sprintf("%s:%d:%d", in.File, line, column), fail, e.raw, in.before23()}
		if err := s.check(); err != nil {
			return nil, err
		}
		set = s.addTo(set)
	}
	return set, nil
}

// unknown refuses a key with which dockerd would not start, as far as is known: one that runs with the file as it is, or was asked and took it,
// knows all keys in it. Of an object that is no key dockerd looks at the names in it instead (configValuesSet), and names of flags
// are keys to it (findConfigurationConflicts).
func (in Input) unknown(e entry, fail func(format string, args ...any) error) error {
	if !in.Edited || in.Accepted {
		return nil
	}
	names := []string{e.name}
	var members map[string]json.RawMessage
	if !slices.Contains(flat, e.name) && json.Unmarshal(e.raw, &members) == nil && members != nil {
		names = slices.Sorted(maps.Keys(members))
	}
	for _, name := range names {
		_, key := keyNamed(name)
		_, flag := kindOf(name)
		if !key && !flag || in.before23() && slices.Contains(since23, name) {
			return fail("unknown key %q; the file was changed since dockerd started, and dockerd does not start with a key that it does not know", name)
		}
	}
	return nil
}

// addTo adds a setting as encoding/json does: of a key that is there twice the last value counts, and objects are united.
func (s setting) addTo(set []setting) []setting {
	null := string(s.raw) == "null"
	i := slices.IndexFunc(set, func(have setting) bool { return have.Name == s.Name })
	collects := s.kind == list || s.kind == texts || s.kind == object
	switch {
	case null && i >= 0 && collects:
		return slices.Delete(set, i, i+1)
	case null:
		return set
	case i < 0:
		return append(set, s)
	}
	var have, more map[string]json.RawMessage
	if json.Unmarshal(set[i].raw, &have) == nil && json.Unmarshal(s.raw, &more) == nil {
		maps.Copy(have, more)
		if united, err := json.Marshal(have); err == nil {
			s.raw = united
		}
	}
	set[i] = s
	return set
}

// check tells whether the value is of the type that dockerd takes.
func (s setting) check() error {
	var to any
	switch s.kind {
	case text, size:
		to = new(string)
	case boolean:
		to = new(bool)
	case number:
		to = new(int64)
	case list:
		to = new([]string)
	case texts:
		to = new(map[string]string)
	case object:
		to = new(any)
	}
	if err := s.decode(to); err != nil {
		return err
	}
	if v, ok := to.(*any); ok {
		switch (*v).(type) {
		case string, float64, bool:
			return s.fail("the value of %s is of the wrong type", s.Name)
		}
	}
	if s.kind == size && string(s.raw) == "null" {
		return s.fail("the value of %s is of the wrong type", s.Name)
	}
	if s.before23 {
		return s.checkValue()
	}
	return nil
}

// checkValue refuses what daemon/config of Docker 20.10 does (Validate, ValidatePlatformConfig). Later ones are asked themselves.
func (s setting) checkValue() error {
	var value any
	if err := s.decode(&value); err != nil {
		return err
	}
	one := func(value any, of ...string) bool { return slices.Contains(of, strings.ToLower(fmt.Sprint(value))) }
	ok := true
	switch s.Name {
	case "max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts":
		n, is := value.(float64)
		ok = !is || n >= 0
	case "log-level":
		ok = one(value, "<nil>", "", "panic", "fatal", "error", "warn", "warning", "info", "debug", "trace")
	case "default-cgroupns-mode":
		ok = one(value, "<nil>", "", "host", "private")
	case "default-ipc-mode":
		ok = one(value, "<nil>", "", "shareable", "private")
	case "dns", "labels":
		items, _ := value.([]any)
		for _, item := range items {
			text, _ := item.(string)
			ok = ok && (s.Name == "dns" && net.ParseIP(strings.TrimSpace(text)) != nil || s.Name == "labels" && strings.Contains(text, "="))
		}
	}
	if !ok {
		return s.fail("dockerd does not take %s as %s", strconv.Quote(fmt.Sprint(value)), s.Name)
	}
	return nil
}

// Place finds what dockerd's message is about: FILE:LINE:COLUMN of the first key of the file whose name is a word in it, else the file.
func Place(in Input, message string) string {
	f, err := file{in.File, in.Data}.decode(in.before23())
	if err != nil {
		return in.File
	}
	entries, _, _ := f.readObject(in.before23())
	words := strings.FieldsFunc(message, func(r rune) bool {
		return !strings.ContainsRune("-_", r) && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	for _, e := range entries {
		if slices.Contains(words, e.name) {
			line, column := f.place(e.offset)
			return fmt.Sprintf("%s:%d:%d", in.File, line, column)
		}
	}
	return in.File
}
