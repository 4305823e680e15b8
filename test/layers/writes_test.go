package layers

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// changers are the packages whose business is to change files of the host.
var changers = words("pkg/agent/host pkg/agent/journal pkg/agent/bundle pkg/agent/images/adopt pkg/agent/internal")

// exceptions are other files of the agent that change something, with the reason why this is not the business of pkg/agent/host.
var exceptions = map[string]string{
	"cmd/runtime-agent/command.go":           "the pod's termination message",
	"cmd/runtime-agent/evidence.go":          "the archive that the user asked for",
	"pkg/agent/canary/canary.go":             "files of the canary's own pod",
	"pkg/agent/cni/lease.go":                 "an address that host-local holds for a pod that is gone",
	"pkg/agent/containerd/effective.go":      "a configuration without a name, for containerd to read",
	"pkg/agent/containerd/try.go":            "the directory of a throw-away containerd",
	"pkg/agent/containerd/tryconfig.go":      "the configuration of a throw-away containerd",
	"pkg/agent/cri/smoke.go":                 "logs and cgroups of the smoke test's pod",
	"pkg/agent/inspect/containerdinstall.go": "a program of an archive, to ask it for its version",
	"pkg/agent/packages/apt.go":              "packages that are kept for the undo, in the run's directory",
	"pkg/agent/pods/processes.go":            "it kills processes",
	"pkg/agent/supervise/supervise.go":       "the directory of the agent's own program",
	"pkg/agent/unit/layout.go":               "the agent's own directories, before there is a journal",
	"pkg/agent/unit/run.go":                  "the lock of the host unit",
}

// changing are the functions that change files or processes, of the packages os, syscall and golang.org/x/sys/unix.
var changing = words(`Chmod Chown Chtimes Create CreateTemp Lchown Link Mkdir MkdirAll MkdirTemp OpenFile Remove RemoveAll Rename Symlink Truncate
	WriteFile Fchmod Fchmodat Fchown Fchownat Fremovexattr Fsetxattr Ftruncate Kill Linkat Lremovexattr Lsetxattr Mkdirat Mknod Mknodat Mount
	PivotRoot Reboot Removexattr Renameat Renameat2 Rmdir Setxattr Symlinkat Umount Unlink Unlinkat Unmount Utimes UtimesNanoAt`)

// TestOnlyHostChangesTheHost: what the agent changes goes through packages that can undo it, but for named exceptions.
func TestOnlyHostChangesTheHost(t *testing.T) {
	seen := map[string]bool{}
	for _, tree := range []string{"pkg/agent", "cmd/runtime-agent"} {
		err := filepath.WalkDir(filepath.Join("../..", tree), func(path string, d fs.DirEntry, err error) error {
			name := strings.TrimPrefix(filepath.ToSlash(path), "../../")
			if err != nil {
				return err
			}
			if d.IsDir() && slices.Contains(changers, name) {
				return fs.SkipDir
			}
			if d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return nil
			}
			for _, call := range changesIn(t, path) {
				seen[name] = true
				if _, ok := exceptions[name]; !ok {
					t.Errorf("%s: only pkg/agent/host changes the host; name another file with its reason in test/layers", strings.TrimPrefix(call, "../../"))
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name := range exceptions {
		if !seen[name] {
			t.Errorf("%s changes nothing any more: take it off the list", name)
		}
	}
}

// changesIn are the calls in a file that change something, by position.
func changesIn(t *testing.T, path string) []string {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var calls []string
	ast.Inspect(file, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		pkg, ok := selector.X.(*ast.Ident)
		if ok && slices.Contains([]string{"os", "unix", "syscall"}, pkg.Name) && slices.Contains(changing, selector.Sel.Name) {
			calls = append(calls, files.Position(n.Pos()).String()+": "+pkg.Name+"."+selector.Sel.Name)
		}
		return true
	})
	return calls
}
