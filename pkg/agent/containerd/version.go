package containerd

import (
	"context"
	"fmt"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// ParseVersion reads the line that `containerd --version` prints: "containerd <module path> <version> <revision>".
// The result has no leading v.
func ParseVersion(line string) (version.Version, error) {
	fields := strings.Fields(line)
	if len(fields) < 3 || fields[0] != "containerd" {
		return version.Version{}, fmt.Errorf("containerd version %q: not the line that containerd --version prints", strings.TrimSpace(line))
	}
	v, ok := version.Parse(strings.TrimPrefix(fields[2], "v"))
	if !ok {
		return version.Version{}, fmt.Errorf("containerd version %q: want major.minor.patch", fields[2])
	}
	return v, nil
}

// Version runs `binary --version` with run, which returns the standard output.
func Version(ctx context.Context, binary string, run func(ctx context.Context, name string, args ...string) (string, error)) (version.Version, error) {
	out, err := run(ctx, binary, "--version")
	if err != nil {
		return version.Version{}, fmt.Errorf("containerd version of %s: %w", binary, err)
	}
	return ParseVersion(out)
}
