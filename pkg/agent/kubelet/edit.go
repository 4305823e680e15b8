package kubelet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// splice replaces data[from:to] of a file.
type splice struct {
	from, to int
	with     string
}

// edits collects what is to be changed in the files of a service.
type edits struct {
	service *service
	splices map[string][]splice
}

// errNoPlace is wrapped with the word that cannot be edited where it stands.
var errNoPlace = errors.New("it is put together from several places")

func (e *edits) add(file string, s splice) { e.splices[file] = append(e.splices[file], s) }

// place returns the file and the bytes of a word.
func (e *edits) place(w word) (file string, from, to int, err error) {
	if w.text == nil || len(w.text.text.at) == 0 {
		return "", 0, 0, fmt.Errorf("change %q: %w", w.value, errNoPlace)
	}
	at := w.text.text.at
	return w.text.file, at[w.from], at[w.to-1] + 1, nil
}

// removeWord takes a word off the command line together with the space before it, or behind it if it is a value's first.
func (e *edits) removeWord(i int) error {
	words := e.service.words
	file, from, to, err := e.place(words[i])
	if err != nil {
		return err
	}
	at := words[i].text.text.at
	switch {
	case i > 0 && words[i-1].text == words[i].text:
		from = at[words[i-1].to-1] + 1
	case i+1 < len(words) && words[i+1].text == words[i].text:
		to = at[words[i+1].from]
	}
	e.add(file, splice{from: from, to: to})
	return nil
}

// setFlag makes every occurrence of a flag say value.
func (e *edits) setFlag(f Flag, value string) error {
	if f.Value == value {
		return nil
	}
	w := e.service.words[f.words[len(f.words)-1]]
	with := value
	if len(f.words) == 1 {
		with = "--" + f.Name + "=" + value
	}
	file, from, to, err := e.place(w)
	if err != nil {
		return err
	}
	e.add(file, splice{from, to, with})
	return nil
}

func (e *edits) removeFlag(f Flag) error {
	for _, i := range f.words {
		if err := e.removeWord(i); err != nil {
			return err
		}
	}
	return nil
}

// appendFlags adds flags where this host keeps them: kubeadm's variable, or the last variable that comes from an environment
// file, or the unit's ExecStart= if an admin wrote it. Unit files of packages are not edited: an update would undo it.
func (e *edits) appendFlags(flags ...string) error {
	text := strings.Join(flags, " ")
	var candidates []*source
	for _, src := range slices.Backward(e.service.sources) {
		if !src.unit {
			candidates = append(candidates, src)
		}
	}
	slices.SortStableFunc(candidates, func(a, b *source) int {
		return rank(a) - rank(b)
	})
	for _, src := range e.service.sources {
		if src.unit && src.variable == "" && adminsOwn(src.file) {
			candidates = append(candidates, src)
		}
	}
	for _, src := range candidates {
		if e.appendTo(src, text) {
			return nil
		}
	}
	return fmt.Errorf("add %s: none of the kubelet's files has a place for it", text)
}

func rank(s *source) int {
	if s.variable == "KUBELET_KUBEADM_ARGS" {
		return 0
	}
	return 1
}

func adminsOwn(file string) bool { return strings.HasPrefix(file, "/etc/") }

func (e *edits) appendTo(src *source, flags string) bool {
	t := src.text
	switch {
	case src.variable == "":
		e.add(src.file, splice{t.end, t.end, " " + flags})
	case t.bare && len(t.value) == 0:
		e.add(src.file, splice{t.end, t.end, `"` + flags + `"`})
	case t.bare && strings.ContainsAny(string(t.value), "\"'\\`$"):
		return false
	case t.bare:
		e.add(src.file, splice{t.start, t.start, `"`})
		e.add(src.file, splice{t.end, t.end, " " + flags + `"`})
	case len(t.value) == 0:
		e.add(src.file, splice{t.end, t.end, flags})
	default:
		e.add(src.file, splice{t.end, t.end, " " + flags})
	}
	return true
}

// apply returns the files' new contents, of those that change.
func (e *edits) apply() map[string][]byte {
	changed := map[string][]byte{}
	for file, splices := range e.splices {
		slices.SortStableFunc(splices, func(a, b splice) int { return a.from - b.from })
		data := e.service.files[file]
		var out []byte
		done := 0
		for _, s := range splices {
			if s.from > done {
				out = append(out, data[done:s.from]...)
			}
			out = append(out, s.with...)
			done = max(done, s.to)
		}
		changed[file] = append(out, data[done:]...)
	}
	return changed
}
