package host

import (
	"strings"
	"testing"
)

func FuzzParentOf(f *testing.F) {
	f.Add("12 (a) b) S 7 1 1")
	f.Add("")
	f.Add("1 (x")
	f.Fuzz(func(t *testing.T, stat string) {
		if got := parentOf("12 (" + stat + ") S 7 1 1"); got != 7 && !strings.Contains(stat, ")") {
			t.Errorf("%q: %d", stat, got)
		}
		parentOf(stat)
	})
}
