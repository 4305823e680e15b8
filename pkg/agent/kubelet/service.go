package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// source is a value in a file whose words end up on the kubelet's command line.
type source struct {
	file string
	// variable is the environment variable that is assigned, empty for ExecStart= itself.
	variable string
	// unit is set if the file is a unit file or drop-in, not an environment file.
	unit bool
	text text
}

// Reader reads a file of the host; os.ReadFile outside of tests.
type Reader func(path string) ([]byte, error)

// maxFile is far above any file of a kubelet's, in bytes.
const maxFile = 1 << 20

// bounded reads a file, and refuses one that cannot be what it is taken for.
func (read Reader) bounded(path string) ([]byte, error) {
	data, err := read(path)
	if err == nil && len(data) > maxFile {
		return nil, fmt.Errorf("%s has %d bytes; no file of a kubelet's has more than %d", path, len(data), maxFile)
	}
	return data, err
}

// service is the kubelet's unit as systemd puts it together from its files.
type service struct {
	files map[string][]byte
	// words are the command line, the program first.
	words []word
	// sources are those whose words are on the command line, in order.
	sources []*source
}

// loadService reads the unit's files, in the order in which systemd applies them (FragmentPath, then DropInPaths).
func loadService(read Reader, unitFiles []string) (*service, error) {
	s := &service{files: map[string][]byte{}}
	environment := map[string]*source{}
	var command *source
	var envFiles []string
	for _, file := range unitFiles {
		data, err := read.bounded(file)
		if err != nil {
			return nil, fmt.Errorf("read unit file: %w", err)
		}
		s.files[file] = data
		for _, a := range parseUnit(data) {
			value := strings.TrimSpace(string(a.text.value))
			switch a.key {
			case "ExecStart":
				command = nil
				if value != "" {
					command = &source{file: file, unit: true, text: a.text}
				}
			case "EnvironmentFile":
				if value == "" {
					envFiles = nil
				} else {
					envFiles = append(envFiles, value)
				}
			case "Environment":
				if value == "" {
					clear(environment)
				} else if err := addEnvironment(environment, file, a.text); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, file := range envFiles {
		if err := s.addEnvFile(read, environment, file); err != nil {
			return nil, err
		}
	}
	if command == nil {
		return nil, fmt.Errorf("read unit %s: no ExecStart=", strings.Join(unitFiles, ", "))
	}
	if err := s.expand(command, environment); err != nil {
		return nil, fmt.Errorf("read ExecStart= in %s: %w", command.file, err)
	}
	return s, nil
}

// addEnvironment takes the assignments of one Environment= line: words of the form NAME=VALUE, quoted as a whole or in part.
func addEnvironment(environment map[string]*source, file string, t text) error {
	line := &source{file: file, unit: true, text: t}
	words, err := split(line, true)
	if err != nil {
		return fmt.Errorf("read Environment= in %s: %w", file, err)
	}
	for _, w := range words {
		name, value, ok := strings.Cut(w.value, "=")
		if !ok || !validName(name) {
			continue
		}
		src := &source{file: file, variable: name, unit: true}
		src.text.end = -1
		// The value's place is known if the word holds no escapes and at most one pair of quotes around the whole or the value.
		raw := string(t.value[w.from:w.to])
		if at := strings.Index(raw, value); value != "" && at >= 0 && strings.Trim(raw[at+len(value):], `"'`) == "" {
			from := w.from + at
			src.text.value, src.text.at = t.value[from:from+len(value)], t.at[from:from+len(value)]
			src.text.end = src.text.at[len(value)-1] + 1
			src.text.bare = !strings.ContainsAny(raw, `"'`)
		} else {
			src.text.value = []byte(value)
		}
		environment[name] = src
	}
	return nil
}

func (s *service) addEnvFile(read Reader, environment map[string]*source, pattern string) error {
	pattern, optional := strings.CutPrefix(pattern, "-")
	files := []string{pattern}
	if strings.ContainsAny(pattern, "*?[") {
		var err error
		if files, err = filepath.Glob(pattern); err != nil {
			return fmt.Errorf("EnvironmentFile=%s: %w", pattern, err)
		}
		slices.Sort(files)
	}
	for _, file := range files {
		data, err := read.bounded(file)
		if errors.Is(err, fs.ErrNotExist) && optional {
			continue
		}
		if err != nil {
			return fmt.Errorf("read environment file: %w", err)
		}
		variables, err := parseEnv(data)
		if err != nil {
			return fmt.Errorf("read environment file %s: %w", file, err)
		}
		s.files[file] = data
		for _, v := range variables {
			environment[v.name] = &source{file: file, variable: v.name, text: v.text}
		}
	}
	return nil
}

// expand makes the command line as systemd.service(5) says: $NAME as a word of its own becomes the variable's words, ${NAME}
// anywhere its value.
func (s *service) expand(command *source, environment map[string]*source) error {
	words, err := split(command, true)
	if err != nil {
		return err
	}
	if len(words) == 0 {
		return errors.New("no program")
	}
	prefix := words[0].value[:len(words[0].value)-len(strings.TrimLeft(words[0].value, "-@+!:|"))]
	words[0].value = words[0].value[len(prefix):]
	if strings.Contains(prefix, "@") {
		words = slices.Delete(words, 1, min(2, len(words)))
	}
	s.sources = append(s.sources, command)
	for _, w := range words {
		name, whole := strings.CutPrefix(w.value, "$")
		switch {
		case strings.Contains(prefix, ":"):
			s.words = append(s.words, specifiers(w))
		case whole && validName(name):
			src := environment[name]
			if src == nil {
				continue
			}
			expanded, err := split(src, false)
			if err != nil {
				return fmt.Errorf("variable %s in %s: %w", name, src.file, err)
			}
			for i := range expanded {
				expanded[i].anything = src.unit && strings.Contains(expanded[i].value, "%")
			}
			s.words = append(s.words, expanded...)
			s.sources = append(s.sources, src)
		default:
			w = specifiers(w)
			if value := inline(w.value, environment); value != w.value {
				w.value, w.text = value, nil
			}
			s.words = append(s.words, w)
		}
	}
	return nil
}

func specifiers(w word) word {
	if rest := strings.ReplaceAll(w.value, "%%", ""); strings.Contains(rest, "%") {
		w.anything = true
	} else {
		w.value = strings.ReplaceAll(w.value, "%%", "%")
	}
	return w
}

func inline(value string, environment map[string]*source) string {
	var out strings.Builder
	for {
		before, rest, ok := strings.Cut(value, "$")
		out.WriteString(before)
		if !ok {
			return out.String()
		}
		name, after, closed := strings.Cut(strings.TrimPrefix(rest, "{"), "}")
		switch {
		case strings.HasPrefix(rest, "$"):
			out.WriteByte('$')
			value = rest[1:]
		case strings.HasPrefix(rest, "{") && closed && validName(name):
			if src := environment[name]; src != nil {
				out.Write(src.text.value)
			}
			value = after
		default:
			out.WriteByte('$')
			value = rest
		}
	}
}

// matches reports whether a running process's arguments are what the files say, and if not the first difference.
func (s *service) matches(args []string) (difference string, ok bool) {
	for i := 1; i < max(len(args), len(s.words)); i++ {
		switch {
		case i >= len(args):
			return fmt.Sprintf("%q is not on its command line", s.words[i].value), false
		case i >= len(s.words):
			return fmt.Sprintf("%q on its command line is not there", args[i]), false
		case s.words[i].value != args[i] && !s.words[i].anything:
			return fmt.Sprintf("%q is %q on its command line", s.words[i].value, args[i]), false
		}
	}
	return "", true
}

// Flag is one flag of a command line.
type Flag struct {
	Name  string // without dashes, words joined by "-" as the kubelet normalises them
	Value string
	words []int
}

// parseFlags reads arguments, the program first. The kubelet takes no arguments other than flags, so what does not begin with a
// dash is the value of the flag before it.
func parseFlags(args []string) []Flag {
	var flags []Flag
	for i := 1; i < len(args); i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "-") {
			if n := len(flags); n > 0 && len(flags[n-1].words) == 1 && !strings.Contains(args[i-1], "=") {
				flags[n-1].Value = arg
				flags[n-1].words = append(flags[n-1].words, i)
			}
			continue
		}
		name, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		flags = append(flags, Flag{Name: strings.ReplaceAll(name, "_", "-"), Value: value, words: []int{i}})
	}
	return flags
}

// lastFlag returns the value that counts: of the last one.
func lastFlag(flags []Flag, name string) (string, bool) {
	for _, f := range slices.Backward(flags) {
		if f.Name == name {
			return f.Value, true
		}
	}
	return "", false
}

func (s *service) args() []string {
	args := make([]string, len(s.words))
	for i, w := range s.words {
		args[i] = w.value
	}
	return args
}

// FlagOf returns the value of a flag of any program that takes flags as the kubelet does; empty if it is not there.
func FlagOf(args []string, name string) string {
	value, _ := lastFlag(parseFlags(args), name)
	return value
}
