package inventory

import (
	"fmt"
	"strings"
)

// Version is the part of a version that compatibility depends on.
type Version struct{ Major, Minor, Patch int }

// ParseVersion reads the leading numbers of a version as kubelets, runtimes and distributions spell them: "v1.23.17-eks-a1",
// "20.10.24+dfsg1", "1.6.20~ds1", "2.0.0-rc.1", "1.7". It wants a major and a minor; what follows is ignored.
func ParseVersion(s string) (Version, bool) {
	rest := strings.TrimPrefix(strings.TrimSpace(s), "v")
	var numbers [3]int
	for i := range numbers {
		n, after, ok := leadingNumber(rest)
		if !ok {
			return Version{}, false
		}
		numbers[i], rest = n, after
		next, dotted := strings.CutPrefix(rest, ".")
		if !dotted || next == "" || next[0] < '0' || next[0] > '9' {
			if i == 0 {
				return Version{}, false
			}
			break
		}
		rest = next
	}
	return Version{numbers[0], numbers[1], numbers[2]}, true
}

// leadingNumber cuts a decimal number of at most nine digits off s.
func leadingNumber(s string) (n int, rest string, ok bool) {
	i := 0
	for ; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
		n = n*10 + int(s[i]-'0')
		if i == 9 {
			return 0, s, false
		}
	}
	return n, s[i:], i > 0
}

// String renders major, minor and patch without a leading v.
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// Compare is negative if v is older than w, zero if they are the same, positive if v is newer.
func (v Version) Compare(w Version) int {
	switch {
	case v.Major != w.Major:
		return v.Major - w.Major
	case v.Minor != w.Minor:
		return v.Minor - w.Minor
	default:
		return v.Patch - w.Patch
	}
}

// AtLeast reports whether v is major.minor or newer.
func (v Version) AtLeast(major, minor int) bool {
	return v.Compare(Version{Major: major, Minor: minor}) >= 0
}
