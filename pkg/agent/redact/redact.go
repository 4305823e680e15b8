// Package redact takes secrets out of text that leaves the node: registry credentials, passwords, tokens, private keys, and the
// credentials in URLs. It knows forms, not files: JSON, also inside of JSON strings, YAML, TOML, environment files, command lines.
// It would rather take out too much. pkg/agent/evidence and the engine call it.
package redact

import (
	"bytes"
	"regexp"
	"slices"
)

// Mark stands where something was taken out.
const Mark = "REDACTED"

// quote is what may stand around a key or a value: JSON inside of JSON strings has its quotes escaped.
const quote = `\\*["']?`

// value is a quoted string or a word.
const value = `(?:\\*"(?:[^"\\\r\n]|\\[^"\r\n])*\\*"?|'[^'\r\n]*'?|[^\s"',;}\]]+)`

// keys matches private keys; one whose end was cut off, to the end of the text.
var keys = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`)

// rules are applied to each line that holds one of their hints, in lower case: most lines of a log hold none, and expressions are slow.
var rules = []struct {
	pattern *regexp.Regexp
	with    string
	hints   []string
}{
	// Keys in base64, as kubeconfigs have it: "-----BEGIN" is LS0tLS1CRUdJT.
	{regexp.MustCompile(`LS0tLS1CRUdJT[A-Za-z0-9+/=]*`), Mark, []string{"ls0tls1crudjt"}},
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), Mark, []string{"eyj"}},
	{regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s/"'\\]+@`), "${1}" + Mark + "@", []string{"://"}},
	{regexp.MustCompile(`(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}`), "${1}" + Mark, []string{"bearer", "basic"}},
	// Keys that stand for a secret as a whole.
	{regexp.MustCompile(`(?i)((?:^|[^\w.-])` + quote + `(?:auth|authorization|x-registry-auth|passphrase|credentials?)` + quote + `[ \t]*[:=][ \t]*)` + value), "${1}" + Mark, []string{"auth", "passphrase", "credential"}},
	// Keys that speak of one.
	{regexp.MustCompile(`(?i)((?:password|passwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|client-key-data)` + quote + `[ \t]*[:=][ \t]*)` + value), "${1}" + Mark, []string{"password", "passwd", "secret", "token", "key"}},
	// Flags whose value is the next word, also as the next string of a list.
	{regexp.MustCompile(`(?i)(--?[\w-]*(?:password|passwd|secret|token)` + quote + `(?:\s*,\s*|[ \t]+)` + quote + `)[^\s"',\\\]-][^\s"',\\\]]*`), "${1}" + Mark, []string{"password", "passwd", "secret", "token"}},
}

// Text returns the text without its secrets.
func Text(text []byte) []byte {
	text = keys.ReplaceAll(text, []byte(Mark))
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		lower := bytes.ToLower(line)
		for _, rule := range rules {
			if slices.ContainsFunc(rule.hints, func(hint string) bool { return bytes.Contains(lower, []byte(hint)) }) {
				line = rule.pattern.ReplaceAll(line, []byte(rule.with))
			}
		}
		out.Write(line)
	}
	return out.Bytes()
}
