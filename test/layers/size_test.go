package layers

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strings"
	"testing"
)

// What a stranger can still read: lines of a package without its tests, lines of a file, methods of a type.
const (
	maxPackage = 3000
	maxFile    = 500
	maxMethods = 20
)

var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// TestSizes: no package, no file and no type is too large. Generated files may be.
func TestSizes(t *testing.T) {
	list, err := exec.Command("git", "-C", "../..", "ls-files", "-z", "--", "*.go").Output()
	if err != nil {
		t.Skipf("the files of the repository are not known: %v", err)
	}
	check := func(what string, size, limit int, unit string) {
		if size > limit {
			t.Errorf("%s has %d %s, more than %d: split it by subject", what, size, unit, limit)
		}
	}
	packages, methods := map[string]int{}, map[string]int{}
	for file := range strings.SplitSeq(strings.Trim(string(list), "\x00"), "\x00") {
		text, err := os.ReadFile("../../" + file)
		if os.IsNotExist(err) { // removed and not committed
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if generated.Match(text) {
			continue
		}
		lines := bytes.Count(text, []byte("\n"))
		check(file, lines, maxFile, "lines")
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		packages[path.Dir(file)] += lines
		parsed, err := parser.ParseFile(token.NewFileSet(), file, text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, declared := range parsed.Decls {
			if method, ok := declared.(*ast.FuncDecl); ok && method.Recv != nil {
				methods[path.Dir(file)+"."+receiver(method.Recv.List[0].Type)]++
			}
		}
	}
	for name, lines := range packages {
		check(name, lines, maxPackage, "lines")
	}
	for name, count := range methods {
		check(name, count, maxMethods, "methods")
	}
	if len(packages) < 20 || len(methods) < 50 {
		t.Errorf("only %d packages and %d types with methods were found", len(packages), len(methods))
	}
}

// receiver is the name of a method's type.
func receiver(expr ast.Expr) string {
	switch x := expr.(type) {
	case *ast.StarExpr:
		return receiver(x.X)
	case *ast.IndexExpr:
		return receiver(x.X)
	case *ast.IndexListExpr:
		return receiver(x.X)
	case *ast.Ident:
		return x.Name
	}
	return "?"
}
