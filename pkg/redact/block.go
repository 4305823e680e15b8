package redact

import (
	"regexp"
	"strings"
)

// block is what of the lines before says how to read the next one, in YAML and in JSON over several lines.
type block struct {
	// one takes the secrets out of a line by itself.
	one func(string) string
	// open: the lines that are indented by more than indent belong to a secret's key. text: all of them are its value; else lines with
	// keys of their own are not.
	open, text bool
	indent     int
	// named: the line before names a variable of a secret.
	named string
}

// maxKeyLine is the length of a line that holds a key or a name alone, and its indentation, in bytes.
const maxKeyLine = 250

var (
	// keyAlone is a key whose value is in the lines below it.
	keyAlone = regexp.MustCompile(`^([+-]?[ \t]*(?:- )*)["']?([A-Za-z_.][\w.-]*)["']?\s*[:=]\s*([|>][0-9+-]*)?\s*$`)
	// anyKey is a line with a key.
	anyKey = regexp.MustCompile(`^[ \t]*(?:- )*["']?[\w./-]+["']?\s*[:=](?:\s|$)`)
	// varName and varValue are the two lines of a variable.
	varName  = regexp.MustCompile(`(?i)^[+-]?[ \t]*(?:- )*["']?(?:name|key)["']?\s*[:=]\s*["']?([\w.-]+)["']?,?\s*$`)
	varValue = regexp.MustCompile(`(?i)^([+-]?[ \t]*["']?value["']?\s*[:=]\s*)(.*)$`)
)

// line is the line without its secrets.
func (b *block) line(line string) string {
	indent := len(line) - len(strings.TrimLeft(line, " \t"))
	if b.open {
		content := strings.TrimSpace(line)
		inList := indent == b.indent && strings.HasPrefix(content, "- ")
		switch {
		case content == "":
			return line
		case indent <= b.indent && !inList:
			b.open = false
		case b.text || !anyKey.MatchString(line) && !strings.HasPrefix(content, "{") && !strings.HasPrefix(content, "}"):
			return redactItem(line)
		default:
			b.open = false // a mapping, whose keys say what is a secret
		}
	}
	named := b.named
	b.named = ""
	if named != "" {
		if m := varValue.FindStringSubmatch(line); m != nil {
			with, n := redactValue(m[2], named, true)
			if strings.Trim(m[2], "|>-+ ") == "" {
				b.open, b.text, b.indent = true, true, indent
			}
			return m[1] + with + m[2][n:]
		}
	}
	if len(line) < maxKeyLine {
		if m := varName.FindStringSubmatch(line); m != nil && isSecret(m[1]) {
			b.named = m[1]
		}
		if m := keyAlone.FindStringSubmatch(line); m != nil && isSecret(m[2]) {
			b.open, b.text, b.indent = true, m[3] != "", indent
			return line
		}
	}
	return b.one(line)
}

var item = regexp.MustCompile(`^([ \t]*(?:- )?["']?)(.*?)(["']?,?\s*)$`)

// redactItem takes all out of a line but its form.
func redactItem(line string) string {
	m := item.FindStringSubmatch(line)
	if m == nil || isPlain(m[2], "") {
		return line
	}
	return m[1] + Mark + m[3]
}
