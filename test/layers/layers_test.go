// Package layers holds the rules of docs/architecture.md that the compiler does not: which package may import which, which code may
// change the host, and which words are plain. It needs nothing but Go, so that it runs on every machine.
package layers

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kubectl-runtime/kubectl-runtime/"

// shared are the packages that plugin and agent have in common.
var shared = words("protocol redact fault version")

// agent lists what each package of pkg/agent may import of pkg/agent, beside the shared ones: nothing else is allowed. The rooms come below.
var agent = map[string][]string{
	"bundle":       words("host"),
	"canary":       nil,
	"cni":          nil,
	"containerd":   nil,
	"cri":          words("host"),
	"docker":       nil,
	"engine":       words("host journal"),
	"evidence":     words("host journal unit"),
	"host":         nil,
	"images":       words("docker host images/adopt"),
	"images/adopt": words("host"),
	"journal":      words("host"),
	"kubelet":      words("host"),
	"packages":     words("host"),
	"supervise":    words("engine host journal unit"),
	"translate":    nil,
	"unit":         words("engine host journal"),
}

// rooms are the packages that know what a switch is. Each may import those before it, and the subjects.
var (
	rooms    = words("node facts desired inspect pods steps preview")
	subjects = words("bundle cni containerd cri docker engine host images images/adopt journal kubelet packages translate")
)

func words(text string) []string { return strings.Fields(text) }

// TestAgentLayers: a package of the agent imports only those that it may.
func TestAgentLayers(t *testing.T) {
	may := map[string][]string{}
	for name, list := range agent {
		may[name] = list
	}
	for n, room := range rooms {
		may[room] = slices.Concat(subjects, rooms[:n])
	}
	for name, imports := range importsOf(t) {
		name, ok := strings.CutPrefix(name, "pkg/agent/")
		if !ok || strings.HasPrefix(name, "internal/") {
			continue
		}
		allowed, known := may[name]
		if !known {
			t.Errorf("pkg/agent/%s has no place: add it to test/layers", name)
			continue
		}
		for _, i := range imports {
			if sub, ok := strings.CutPrefix(i, module+"pkg/agent/"); ok && !slices.Contains(allowed, sub) {
				t.Errorf("pkg/agent/%s imports pkg/agent/%s, and may import: %s", name, sub, strings.Join(allowed, ", "))
			} else if sub, ours := strings.CutPrefix(i, module+"pkg/"); ours && !ok && !slices.Contains(shared, sub) {
				t.Errorf("pkg/agent/%s imports pkg/%s: plugin and agent meet only in %s", name, sub, strings.Join(shared, ", "))
			}
		}
	}
}

// forbidden are imports that whole trees may not have, also not through another package.
var forbidden = []struct{ tree, pkg, why string }{
	{"cmd/runtime-agent", "k8s.io/client-go", "the agent has no credentials of its own for the API server"},
	{"cmd/runtime-agent", "k8s.io/api", "the agent stays small"},
	{"cmd/kubectl-runtime", module + "pkg/agent", "plugin and agent meet only in pkg/protocol"},
	{"pkg/protocol", "k8s.io", "both sides import it"},
	{"pkg/untrusted", "k8s.io", "it parses texts and knows no cluster"},
	{"pkg/untrusted", module + "pkg/agent", "the agent is what is not trusted"},
}

// commands are the packages that know cobra.
var commands = words("pkg/cli pkg/plugin pkg/plugin/status")

// TestForbiddenImports looks at all that a package is built from.
func TestForbiddenImports(t *testing.T) {
	for _, rule := range forbidden {
		for dep := range strings.FieldsSeq(goList(t, "-deps", "./"+rule.tree)) {
			if dep == rule.pkg || strings.HasPrefix(dep, rule.pkg+"/") {
				t.Errorf("%s is built with %s: %s", rule.tree, dep, rule.why)
			}
		}
	}
	for name, imports := range importsOf(t) {
		for _, i := range imports {
			if i == "github.com/spf13/cobra" && strings.HasPrefix(name, "pkg/") && !slices.Contains(commands, name) {
				t.Errorf("%s imports cobra, which only commands know", name)
			}
			if strings.HasPrefix(i, module+"pkg/agent/internal/") && !strings.HasPrefix(name, "pkg/agent/internal/") {
				t.Errorf("%s imports %s, which is for tests", name, i)
			}
		}
	}
}

// importsOf are the imports of each package below pkg and cmd, without those of its tests.
func importsOf(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for line := range strings.Lines(goList(t, "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./pkg/...", "./cmd/...")) {
		f := strings.Fields(line)
		all[strings.TrimPrefix(f[0], module)] = f[1:]
	}
	if len(all) < 20 {
		t.Fatalf("only %d packages were found", len(all))
	}
	return all
}

func goList(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		detail := ""
		if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // as os/exec returns it
			detail = string(exit.Stderr)
		}
		t.Fatal(fmt.Errorf("go list: %w: %s", err, detail))
	}
	return string(out)
}
