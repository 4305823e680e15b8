// Package redact takes secrets out of text: registry credentials, passwords, tokens, private keys, and the credentials in URLs. It knows
// forms, not files: JSON, also inside of JSON strings, YAML, TOML, environment files, command lines, headers. It would rather take out too
// much. It is called where text leaves a node or this program for good: by protocol where an event is encoded, by pkg/agent/evidence and
// pkg/nodeswitch where a bundle is written, and by the agent for what it writes to a log.
package redact

import (
	"bytes"
	"encoding/base64"
	"regexp"
	"strings"
)

// Mark replaces what was taken out.
const Mark = "REDACTED"

// String is Text for a string.
func String(text string) string { return string(Text([]byte(text))) }

// Text returns the text without its secrets. Text that went through it once is not changed again.
func Text(text []byte) []byte { return lines(text, redactLine) }

// lines takes out private keys, and what one or several lines say that it is a secret.
func lines(text []byte, one func(string) string) []byte {
	text = keys.ReplaceAll(text, []byte(Mark))
	var out bytes.Buffer
	state := block{one: one}
	for line := range bytes.Lines(text) {
		end := len(bytes.TrimRight(line, "\r\n"))
		out.WriteString(state.line(string(line[:end])))
		out.Write(line[end:])
	}
	return out.Bytes()
}

// keys matches private keys; one whose end was cut off, to the end of the text.
var keys = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\z)`)

// redactLine takes the secrets out of one line. Most lines of a log hold no hint of one, and expressions are slow.
func redactLine(line string) string {
	line = redactPlain(line)
	if !hasRun(line, isBase64, 24) {
		return line
	}
	return base64Run.ReplaceAllStringFunc(line, func(run string) string {
		decoded, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(run, "="))
		if err == nil && !bytes.Equal(lines(decoded, redactPlain), decoded) {
			return Mark
		}
		return run
	})
}

// base64Run is what may be a whole file.
var base64Run = regexp.MustCompile(`[A-Za-z0-9+/]{24,}={0,2}`)

// hasRun reports whether a text has a number of bytes of one kind in a row.
func hasRun(text string, is func(byte) bool, most int) bool {
	n := 0
	for i := range len(text) {
		if n++; !is(text[i]) {
			n = 0
		} else if n == most {
			return true
		}
	}
	return false
}

func isAlphanumeric(b byte) bool {
	return 'a' <= b && b <= 'z' || '0' <= b && b <= '9' || 'A' <= b && b <= 'Z'
}

func isBase64(b byte) bool { return isAlphanumeric(b) || b == '+' || b == '/' }

func redactPlain(line string) string {
	lower := strings.ToLower(line)
	if strings.Contains(lower, "@") {
		line = redactUsers(line)
	}
	for _, shape := range shapes {
		if containsAny(lower, shape.hints) {
			line = shape.pattern.ReplaceAllStringFunc(line, func(found string) string {
				if shape.unless != nil && shape.unless(found) {
					return found
				}
				return shape.pattern.ReplaceAllString(found, shape.with)
			})
		}
	}
	if hasRun(line, isAlphanumeric, 16) {
		line = bootstrap.ReplaceAllStringFunc(line, func(found string) string {
			if strings.ContainsAny(found[7:], "0123456789") {
				return Mark
			}
			return found
		})
	}
	if containsAny(lower, keyHints) {
		if strings.Contains(lower, "value") {
			line = redactPairs(line)
		}
		if strings.Contains(lower, "-") {
			line = redactFlags(line)
		}
		line = redactKeys(line)
	}
	return line
}

// bootstrap is one of kubeadm's tokens, if there is a digit in it.
var bootstrap = regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b`)

func containsAny(text string, hints []string) bool {
	for _, hint := range hints {
		if strings.Contains(text, hint) {
			return true
		}
	}
	return false
}

// shape is a secret that is known by its own look, or by a word before it. It is looked for in lines that hold one of its hints in lower
// case.
type shape struct {
	pattern *regexp.Regexp
	with    string
	hints   []string
	unless  func(found string) bool
}

var shapes = []shape{
	// Keys in base64, as kubeconfigs have it: "-----BEGIN" is LS0tLS1CRUdJT. Certificates ("-----BEGIN CERT") are none.
	{
		regexp.MustCompile(`LS0tLS1CRUdJT[A-Za-z0-9+/=]*`), Mark, []string{"ls0tls1crudjt"},
		func(found string) bool { return strings.HasPrefix(found, "LS0tLS1CRUdJTiBDRVJU") },
	},
	// JSON Web Tokens.
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), Mark, []string{"eyj"}, nil},
	// Headers, from the scheme to the end: Digest and AWS have several parts.
	{
		regexp.MustCompile(`(?i)\b(authorization\\*["']?\s*[:=]\s*\[?\s*\\*["']?)(?:basic|bearer|token|digest|negotiate|ntlm|hawk|oauth|apikey|sharedkey|sharedkeylite|aws[\w-]*) [^\r\n\]}]*`),
		"${1}" + Mark, []string{"authorization"}, nil,
	},
	{regexp.MustCompile(`(?i)\b((?:set-)?cookie\\*["']?\s*:\s*\\*["']?)[^"'\\\r\n]+`), "${1}" + Mark, []string{"cookie"}, nil},
	{regexp.MustCompile(`(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}`), "${1}" + Mark, []string{"bearer", "basic"}, isWord},
	{regexp.MustCompile(`(\bSignature=)[A-Za-z0-9%+/=_-]{16,}`), "${1}" + Mark, []string{"signature="}, nil},
	// Tokens that say whose they are: of GitHub, GitLab, Slack, npm, PyPI, Docker, Vault, SendGrid, Stripe, OpenAI, Google, AWS, DigitalOcean, age.
	{
		regexp.MustCompile(`\b(?:gh[opsur]_|github_pat_|gl(?:pat|dt|rt|soat|ptt)-|xox[abeoprs]-|npm_|pypi-|dckr_[a-z]+_|hv[bsr]\.|SG\.|[rs]k_(?:live|test)_|sk-|ya29\.|AIza|AKIA|ASIA|do[opr]_v1_|AGE-SECRET-KEY-)[A-Za-z0-9_.-]{12,}`),
		Mark, []string{"gh", "github", "gl", "xox", "npm_", "pypi-", "dckr_", "hv", "sg.", "k_", "sk-", "ya29.", "aiza", "akia", "asia", "_v1_", "age-secret"}, nil,
	},
	// Webhooks, whose path is the secret.
	{
		regexp.MustCompile(`(?i)(hooks\.slack\.com/(?:services|workflows|triggers)/|discord(?:app)?\.com/api/webhooks/|\.webhook\.office\.com/)[^\s"'\\]+`),
		"${1}" + Mark, []string{"hooks.slack", "webhook"}, nil,
	},
	// The users of curl and others, but for numbers, which are those of a container.
	{
		regexp.MustCompile(`((?:^|[\s"'])(?:-u|--user|--proxy-user)(?:\s+|=|\\*["']\s*,\s*)\\*["']?[^\s:"'\\,]+:)[^\s"'\\]+`), "${1}" + Mark, []string{"-u"},
		func(found string) bool {
			return strings.Trim(found[strings.LastIndexByte(found, ':')+1:], "0123456789") == ""
		},
	},
	{regexp.MustCompile(`(?i)(\blogin\b[^\r\n]*?\s-p[ =]?\s*\\*["']?)[^\s"'\\]+`), "${1}" + Mark, []string{"login"}, nil},
	{regexp.MustCompile(`(?i)(\b(?:mysql\w*\b[^\r\n]*?\s-p|mariadb\b[^\r\n]*?\s-p|sshpass\s+-p\s*)\\*["']?)[^\s"'\\]+`), "${1}" + Mark, []string{"mysql", "mariadb", "sshpass"}, nil},
	// A word that looks random, in a sentence.
	{
		regexp.MustCompile(`(?i)(\b(?:token|password|passphrase|secret|api key)(?: is| was|:)? \\*["']?)[A-Za-z0-9+/=_-]{12,}`), "${1}" + Mark,
		[]string{"token", "pass", "secret", "api key"}, isWord,
	},
}

// isWord reports whether the last word found is one of a language, or a name as Kubernetes has it, and not a random one.
func isWord(found string) bool {
	word := found[strings.LastIndexAny(found, " \t\"'\\")+1:]
	lower := strings.ToLower(word)
	if strings.ContainsAny(word, "0123456789") {
		return word == lower && strings.Contains(word, "-")
	}
	return word[1:] == lower[1:] || word == strings.ToUpper(word)
}
