package protocol

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

const (
	// maxExcerpt is how many lines of captured output are shown, the first of which says how many are left out.
	maxExcerpt = 10
	// maxExcerptLine bounds each of them in bytes.
	maxExcerptLine = 400
)

// tells matches a line in which a program says why it failed: level=error of logrus and slog, the same in JSON, klog's E and F, and what apt, dnf, dpkg and
// others begin such a line with.
var tells = regexp.MustCompile(`(?i)\blevel"?[=:]\s*"?(error|fatal|panic)\b|^\W*(e|err|error|fatal|panic|failed)\b\W*[:\]]|^(panic|fatal error): |(?-i)^[EF][0-9]{4} [0-9]{2}:`)

// Excerpt returns what to show of captured output: all of it if that is little, and otherwise the lines that tell why something failed and then
// the last ones, in their order. Whole output is in the evidence of a run.
func Excerpt(output string) string {
	var lines []string
	for line := range strings.Lines(output) {
		if line = strings.TrimRight(line, " \t\r\n"); line != "" {
			lines = append(lines, bounded(line))
		}
	}
	if len(lines) <= maxExcerpt {
		return strings.Join(lines, "\n")
	}
	var kept []int
	keep := func(wanted func(line string) bool) {
		for i := len(lines) - 1; i >= 0 && len(kept) < maxExcerpt-1; i-- {
			if !slices.Contains(kept, i) && wanted(lines[i]) {
				kept = append(kept, i)
			}
		}
	}
	keep(tells.MatchString)
	keep(func(string) bool { return true })
	slices.Sort(kept)
	shown := []string{fmt.Sprintf("(%d of %d lines)", len(kept), len(lines))}
	for _, i := range kept {
		shown = append(shown, lines[i])
	}
	return strings.Join(shown, "\n")
}

func bounded(line string) string {
	if len(line) <= maxExcerptLine {
		return line
	}
	return strings.ToValidUTF8(line[:maxExcerptLine-len("…")], "") + "…"
}
