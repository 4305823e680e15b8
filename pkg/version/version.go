// Package version reads the versions of Kubernetes, containerd, Docker and the kernel, and compares them. It is pure.
package version

import (
	"fmt"
	"strings"
)

// Version is a version as a program reports it. Comparisons look at the numbers only: "2.0.0-rc.1" is as new as "2.0.0".
type Version struct {
	Major, Minor, Patch int
	// Text is the whole, as it was read: "v1.23.17-eks-a1". It may be empty.
	Text string
}

// Parse reads the leading numbers of a version as kubelets, runtimes, kernels and distributions write them: "v1.23.17-eks-a1", "20.10.24+dfsg1",
// "1.6.20~ds1", "2.0.0-rc.1", "1.7". It needs a major and a minor number; what follows the third number is only kept in Text. A false result
// means that s is no version.
func Parse(s string) (Version, bool) {
	text := strings.TrimSpace(s)
	rest := strings.TrimPrefix(text, "v")
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
	return Version{numbers[0], numbers[1], numbers[2], text}, true
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

// String is the version as it was read, or its numbers.
func (v Version) String() string {
	if v.Text != "" {
		return v.Text
	}
	return v.Numbers()
}

// Numbers are major, minor and patch, without a leading v.
func (v Version) Numbers() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// Compare is negative if v is older than w, zero if their numbers are the same, positive if v is newer.
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

// AtLeast reports whether text is a version that is major.minor or newer.
func AtLeast(text string, major, minor int) bool {
	v, ok := Parse(text)
	return ok && v.AtLeast(major, minor)
}
