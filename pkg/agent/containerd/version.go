package containerd

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// BinaryVersion is a containerd release.
type BinaryVersion struct {
	Major, Minor, Patch int
	// Text is the version as containerd writes it, without a leading v: "1.6.20~ds1", "2.4.2+unknown".
	Text string
}

// AtLeast compares with major.minor.
func (v BinaryVersion) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

func (v BinaryVersion) String() string { return v.Text }

// ParseVersion reads the line that `containerd --version` prints: "containerd <module path> <version> <revision>".
// Distributions add suffixes ("1.6.20~ds1") or drop the v; these are accepted.
func ParseVersion(line string) (BinaryVersion, error) {
	fields := strings.Fields(line)
	if len(fields) < 3 || fields[0] != "containerd" {
		return BinaryVersion{}, fmt.Errorf("containerd version %q: not the line that containerd --version prints", strings.TrimSpace(line))
	}
	text := strings.TrimPrefix(fields[2], "v")
	numbers := text
	if i := strings.IndexFunc(text, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }); i >= 0 {
		numbers = text[:i]
	}
	var parts [3]int
	split := strings.Split(strings.Trim(numbers, "."), ".")
	if len(split) < 2 || len(split) > 3 {
		return BinaryVersion{}, fmt.Errorf("containerd version %q: want major.minor.patch", fields[2])
	}
	for i, part := range split {
		n, err := strconv.Atoi(part)
		if err != nil {
			return BinaryVersion{}, fmt.Errorf("containerd version %q: %w", fields[2], err)
		}
		parts[i] = n
	}
	return BinaryVersion{Major: parts[0], Minor: parts[1], Patch: parts[2], Text: text}, nil
}

// Version runs `binary --version` with run, which returns the standard output.
func Version(ctx context.Context, binary string, run func(ctx context.Context, name string, args ...string) (string, error)) (BinaryVersion, error) {
	out, err := run(ctx, binary, "--version")
	if err != nil {
		return BinaryVersion{}, fmt.Errorf("containerd version of %s: %w", binary, err)
	}
	return ParseVersion(out)
}
