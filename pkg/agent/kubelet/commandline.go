package kubelet

import (
	"errors"
	"fmt"
	"strings"
)

// text is a value as systemd reads it, with the place in the file of each of its bytes, so that single words of it can be
// changed and everything else in the file stays.
type text struct {
	value []byte
	at    []int
	// end is where the value ends in the file: where something can be appended if it is empty.
	end int
	// bare is set for the value of a variable that has no quotes; it then starts at start.
	bare  bool
	start int
}

func (t *text) add(c byte, at int) {
	t.value = append(t.value, c)
	t.at = append(t.at, at)
}

// word is one argument. Its place is [from, to) in its text; a word made by expansion inside of another has no text.
type word struct {
	value string
	text  *source
	from  int
	to    int
	// anything is set if the value holds specifiers that only systemd can expand.
	anything bool
}

const space = " \t\n\r"

// split cuts a value into words as systemd's extract_first_word does with EXTRACT_UNQUOTE (src/basic/extract-word.c). With
// unescape, backslashes are C escapes, as in ExecStart=; without, they take away the next byte's meaning.
func split(src *source, unescape bool) ([]word, error) {
	var words []word
	value := src.text.value
	for i := 0; i < len(value); {
		if strings.IndexByte(space, value[i]) >= 0 {
			i++
			continue
		}
		w := word{text: src, from: i}
		var out []byte
		var quote byte
		for ; i < len(value) && (quote != 0 || strings.IndexByte(space, value[i]) < 0); i++ {
			switch c := value[i]; {
			case c == '\\':
				i++
				if i == len(value) {
					return nil, errors.New("a backslash at the end")
				}
				escaped, err := escape(value[i], unescape)
				if err != nil {
					return nil, err
				}
				out = append(out, escaped...)
			case quote != 0 && c == quote:
				quote = 0
			case quote == 0 && (c == '"' || c == '\''):
				quote = c
			default:
				out = append(out, c)
			}
		}
		if quote != 0 {
			return nil, errors.New("a quote that is not closed")
		}
		w.value, w.to = string(out), i
		words = append(words, w)
	}
	return words, nil
}

func escape(c byte, unescape bool) ([]byte, error) {
	if !unescape {
		return []byte{c}, nil
	}
	switch c {
	case '\\', '"', '\'':
		return []byte{c}, nil
	case 's':
		return []byte{' '}, nil
	case 'n':
		return []byte{'\n'}, nil
	case 't':
		return []byte{'\t'}, nil
	default:
		return nil, fmt.Errorf("the escape \\%c", c)
	}
}

// variable is one assignment in an environment file.
type variable struct {
	name string
	text text
}

// parseEnv reads an environment file as systemd does (src/basic/env-file.c, parse_env_file_internal): comments with # and ;,
// quotes, continued lines. Names that are no variable names are left out, as there.
func parseEnv(data []byte) ([]variable, error) {
	var variables []variable
	for i := 0; i < len(data); {
		c := data[i]
		if strings.IndexByte(space, c) >= 0 {
			i++
			continue
		}
		end := i + lineLength(data[i:])
		if c == '#' || c == ';' {
			if strings.HasSuffix(strings.TrimRight(string(data[i:end]), "\r"), "\\") {
				// Until systemd 254 the comment went on in the next line, since then it does not.
				return nil, errors.New("a comment that ends in a backslash")
			}
			i = end
			continue
		}
		equals := strings.IndexByte(string(data[i:end]), '=')
		if equals < 0 {
			i = end
			continue
		}
		name := strings.TrimRight(string(data[i:i+equals]), space)
		v := variable{name: name}
		var err error
		if i, err = parseEnvValue(data, i+equals+1, &v.text); err != nil {
			return nil, fmt.Errorf("the value of %s: %w", name, err)
		}
		if validName(name) {
			variables = append(variables, v)
		}
	}
	return variables, nil
}

func lineLength(data []byte) int {
	for i, c := range data {
		if c == '\n' {
			return i
		}
	}
	return len(data)
}

// parseEnvValue reads from data[i:] and returns where the value's line ends.
func parseEnvValue(data []byte, i int, t *text) (int, error) {
	for i < len(data) && (data[i] == ' ' || data[i] == '\t') {
		i++
	}
	t.start, t.end, t.bare = i, i, true
	var quote byte
	trim := 0 // bytes of the value that must not be trimmed, since they were quoted or escaped
	// begun is set when something without quotes stands behind them; inside of it, quotes are ordinary bytes.
	begun := false
	for ; i < len(data); i++ {
		c := data[i]
		switch {
		case quote == 0 && c == '\n':
			t.trim(trim)
			return i, nil
		case c == '\\' && quote != '\'':
			if i++; i == len(data) {
				return i, errors.New("a backslash at the end")
			}
			if data[i] == '\n' {
				continue
			}
			if quote == '"' && strings.IndexByte("\"\\`$", data[i]) < 0 {
				t.add('\\', i-1)
			}
			t.add(data[i], i)
			trim, begun = len(t.value), false
		case quote != 0 && c == quote:
			quote, trim, begun = 0, len(t.value), false
			t.end = i
		case quote == 0 && (c == '"' || c == '\'') && !begun:
			quote, t.bare = c, false
			t.value, t.at = t.value[:trim], t.at[:trim]
			t.end = i + 1
		default:
			if quote == 0 && strings.IndexByte(space, c) < 0 && !begun {
				t.value, t.at = t.value[:trim], t.at[:trim] // space between a quoted part and what follows does not count
			}
			t.add(c, i)
			begun = begun || quote == 0 && c != ' ' && c != '\t'
			if quote != 0 || c != ' ' && c != '\t' && c != '\r' {
				t.end = i + 1
			}
		}
	}
	if quote != 0 {
		return i, errors.New("a quote that is not closed")
	}
	t.trim(trim)
	return i, nil
}

func (t *text) trim(quoted int) {
	n := len(t.value)
	for n > quoted && strings.IndexByte(space, t.value[n-1]) >= 0 {
		n--
	}
	t.value, t.at = t.value[:n], t.at[:n]
}

func validName(name string) bool {
	for i, c := range []byte(name) {
		if c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || i > 0 && c >= '0' && c <= '9' {
			continue
		}
		return false
	}
	return name != ""
}

// assignment is one line of a unit file's [Service] section.
type assignment struct {
	key  string
	text text
}

// parseUnit reads the [Service] section of a unit file or drop-in (systemd.syntax(7)): continued lines, comments between them.
func parseUnit(data []byte) []assignment {
	var assignments []assignment
	section := ""
	for i := 0; i < len(data); {
		start := i
		end := i + lineLength(data[i:])
		line := strings.TrimSpace(string(data[start:end]))
		i = end + 1
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
			continue
		case line[0] == '[':
			section = line
			continue
		}
		t, next := joinLines(data, start)
		i = next
		equals := strings.IndexByte(string(t.value), '=')
		if section != "[Service]" || equals < 0 {
			continue
		}
		a := assignment{key: strings.TrimSpace(string(t.value[:equals])), text: text{value: t.value[equals+1:], at: t.at[equals+1:]}}
		a.text.start, a.text.end = t.at[equals]+1, t.at[equals]+1
		for n := len(a.text.value); n > 0 && strings.IndexByte(space, a.text.value[n-1]) >= 0; n-- {
			a.text.value, a.text.at = a.text.value[:n-1], a.text.at[:n-1]
		}
		if n := len(a.text.at); n > 0 {
			a.text.end = a.text.at[n-1] + 1
		}
		assignments = append(assignments, a)
	}
	return assignments
}

// joinLines reads a line and those that continue it; the backslash and the line's end count as one space.
func joinLines(data []byte, i int) (text, int) {
	var t text
	for first := true; i < len(data); first = false {
		end := i + lineLength(data[i:])
		trimmed := strings.TrimSpace(string(data[i:end]))
		if !first && trimmed != "" && (trimmed[0] == '#' || trimmed[0] == ';') {
			i = end + 1
			continue
		}
		goesOn := end > i && data[end-1] == '\\'
		stop := end
		if goesOn {
			stop--
		}
		for ; i < stop; i++ {
			t.add(data[i], i)
		}
		i = end + 1
		if !goesOn {
			break
		}
		t.add(' ', end-1)
	}
	return t, i
}
