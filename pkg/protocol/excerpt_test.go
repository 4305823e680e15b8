package protocol

import (
	"fmt"
	"strings"
	"testing"
)

// numbered is n lines of a program's log with others in their places.
func numbered(n int, at map[int]string) string {
	var text strings.Builder
	for i := range n {
		line := at[i]
		if line == "" {
			line = fmt.Sprintf("level=info msg=\"line %d\"", i)
		}
		text.WriteString(line + "\n")
	}
	return text.String()
}

// TestExcerpt: at most ten lines, among them those in which the program says why.
func TestExcerpt(t *testing.T) {
	errors := func(n int) map[int]string {
		lines := map[int]string{}
		for i := range n {
			lines[i] = fmt.Sprintf("level=error msg=\"reason %d\"", i)
		}
		return lines
	}
	for _, test := range []struct {
		name, output string
		lines        int
		want, not    []string
	}{
		{"none", "", 0, nil, []string{"lines"}},
		{"little", numbered(10, nil), 10, []string{"line 0\"", "line 9\""}, []string{"of 10 lines"}},
		{"blank lines do not count", numbered(10, nil) + "\n\n \n", 10, nil, []string{"of 10 lines"}},
		{"the last ones", numbered(30, nil), 10, []string{"(9 of 30 lines)", "line 21\"", "line 29\""}, []string{"line 20\""}},
		{"an early reason", numbered(30, map[int]string{3: `time="x" level=fatal msg="bad config"`}), 10, []string{"bad config", "line 29\"", "line 22\""}, []string{"line 21\""}},
		{"many reasons", numbered(40, errors(20)), 10, []string{"reason 19", "reason 11"}, []string{"reason 10\"", "line 39"}},
		{"klog", numbered(30, map[int]string{2: "E1130 10:11:12.000001    1 run.go:74] \"command failed\""}), 10, []string{"command failed"}, nil},
		{"apt", numbered(30, map[int]string{2: "E: Unable to correct problems"}), 10, []string{"Unable to correct"}, nil},
		{"dnf", numbered(30, map[int]string{2: "Error: Transaction test error:"}), 10, []string{"Transaction test"}, nil},
		{"JSON", numbered(30, map[int]string{2: `{"level":"error","msg":"because"}`}), 10, []string{"because"}, nil},
		{"a long line", strings.Repeat("ä", 5000), 1, []string{"…"}, nil},
	} {
		got := Excerpt(test.output)
		lines := 0
		for line := range strings.Lines(got) {
			lines++
			if len(line) > maxExcerptLine+1 {
				t.Errorf("%s: a line of %d bytes", test.name, len(line))
			}
		}
		if lines != test.lines {
			t.Errorf("%s: %d lines, want %d:\n%s", test.name, lines, test.lines, got)
		}
		for _, want := range test.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in:\n%s", test.name, want, got)
			}
		}
		for _, not := range test.not {
			if strings.Contains(got, not) {
				t.Errorf("%s: %q in:\n%s", test.name, not, got)
			}
		}
	}
}

// FuzzExcerpt: whatever a program prints, the excerpt is short, and its lines are the program's.
func FuzzExcerpt(f *testing.F) {
	f.Add(numbered(30, map[int]string{3: "level=error"}))
	f.Add(strings.Repeat("x", 1000) + "\r\n\n\xff")
	f.Fuzz(func(t *testing.T, output string) {
		lines := strings.Split(Excerpt(output), "\n")
		if len(lines) > maxExcerpt {
			t.Errorf("%d lines", len(lines))
		}
		for _, line := range lines {
			if len(line) > maxExcerptLine || !strings.HasSuffix(line, "…") && !strings.HasSuffix(line, " lines)") && !strings.Contains(output, line) {
				t.Errorf("line %q", line)
			}
		}
	})
}
