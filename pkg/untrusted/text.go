// Package untrusted reads what a node says: its agent's events and pods' logs, the archive with evidence, the annotations and the status
// of its Node. A node may be in the hands of an attacker, and whoever switches it holds the rights of an administrator. So everything is
// parsed, bounded and made visible here, and what the program prints passes a Writer. It does no I/O of its own. Everything of the plugin
// that reads from a node calls it; the agent, which runs on the node, does not.
package untrusted

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// cutMark replaces what was cut off.
const cutMark = "…"

// Line makes one line of a text: white space becomes a blank, what is not visible its escape, and what is beyond most bytes is cut.
func Line(text string, most int) string {
	text = head(text, most)
	var line strings.Builder
	blank := false
	for _, r := range text {
		if unicode.IsSpace(r) {
			blank = line.Len() > 0
			continue
		}
		if blank {
			line.WriteByte(' ')
			blank = false
		}
		writeVisible(&line, r)
	}
	return head(line.String(), most)
}

// Block is the end of a text of several lines, at most a number of them: the end of captured output is what tells. Tabs and line breaks
// stay.
func Block(text string, lines, most int) string {
	text = strings.TrimRight(tail(text, most), "\r\n")
	cut := len(text)
	for range lines {
		if cut = strings.LastIndexByte(text[:cut], '\n'); cut < 0 {
			return Visible(text)
		}
	}
	return cutMark + "\n" + Visible(text[cut+1:])
}

// Visible replaces what a terminal would obey or not show, but for tabs and line breaks, by its escape as JSON has it: \u001b.
func Visible(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return r == utf8.RuneError || isHidden(r) && r != '\n' && r != '\t' }) {
		return text
	}
	var out strings.Builder
	for _, r := range text {
		if r == '\n' || r == '\t' {
			out.WriteRune(r)
		} else {
			writeVisible(&out, r)
		}
	}
	return out.String()
}

// isHidden reports whether a character is a control (C0, C1, DEL), changes the direction of text, has no width, breaks lines, or is none: YAML
// has no form for U+FFFE and U+FFFF.
func isHidden(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Noncharacter_Code_Point)
}

func writeVisible(out *strings.Builder, r rune) {
	switch {
	case !isHidden(r):
		out.WriteRune(r)
	case r > 0xffff:
		high, low := utf16.EncodeRune(r)
		fmt.Fprintf(out, `\u%04x\u%04x`, high, low)
	default:
		fmt.Fprintf(out, `\u%04x`, r)
	}
}

// head is the beginning of a text, at most a number of bytes, and tail its end.
func head(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:max(0, most-len(cutMark))], "") + cutMark
}

func tail(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return cutMark + strings.ToValidUTF8(text[len(text)-max(0, most-len(cutMark)):], "")
}
