package preview

import (
	"bytes"
	"fmt"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/redact"
)

// maxDiffed is far above any configuration file, in bytes.
const maxDiffed = 1 << 20

// Diff is a unified diff of a file; nil is one that is not there. Secrets are taken out of both sides first, so that no hunk begins in
// the middle of one.
func Diff(path string, old, new []byte) string {
	names := [2]string{path, path}
	for i, data := range [][]byte{old, new} {
		switch {
		case data == nil:
			names[i] = "/dev/null"
		case len(data) > maxDiffed:
			return fmt.Sprintf("Files %s before and after differ, and are too large to show\n", path)
		case !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0:
			return fmt.Sprintf("Binary files %s before and after differ\n", path)
		}
	}
	text := diff.Diff(names[0], redact.Text(old), names[1], redact.Text(new))
	_, text, _ = bytes.Cut(text, []byte("\n")) // "diff OLD NEW", which is no part of the unified format
	return string(text)
}
