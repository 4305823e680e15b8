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

// inOnePiece are functions that list objects without a limit, with the reason.
var inOnePiece = map[string]string{
	"pkg/nodewatch/nodewatch.go: list": "a limit would have the API server read all pods of the cluster from etcd, where its cache has those of the node",
}

// TestListsHaveLimits: a List of the plugin has a limit, or reads pages for somebody who gives one, as those of pkg/paging. How many objects there are is the
// cluster's business, and often a node's.
func TestListsHaveLimits(t *testing.T) {
	used := map[string]bool{}
	calls := 0
	for _, tree := range []string{"pkg", "cmd/kubectl-runtime"} {
		err := filepath.WalkDir(filepath.Join("../..", tree), func(path string, d fs.DirEntry, err error) error {
			name := strings.TrimPrefix(filepath.ToSlash(path), "../../")
			if err != nil {
				return err
			}
			if d.IsDir() && name == "pkg/agent" {
				return fs.SkipDir
			}
			if d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return nil
			}
			files := token.NewFileSet()
			file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, decl := range file.Decls {
				function, ok := decl.(*ast.FuncDecl)
				if !ok {
					continue
				}
				bounded, unbounded := lists(function)
				calls += len(bounded) + len(unbounded)
				where := name + ": " + function.Name.Name
				for _, call := range unbounded {
					if used[where] = true; inOnePiece[where] == "" {
						t.Errorf("%s: a list without a limit: use pkg/paging, or name %q with its reason in test/layers", files.Position(call.Pos()), where)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for where := range inOnePiece {
		if !used[where] {
			t.Errorf("%s lists nothing without a limit any more: take it off the list", where)
		}
	}
	if calls < 10 {
		t.Errorf("only %d lists were found", calls)
	}
}

// lists are the calls of a client's List in a function, those with a limit and those without.
func lists(function *ast.FuncDecl) (bounded, unbounded []*ast.CallExpr) {
	limited := limitedOptions(function)
	ast.Inspect(function, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) != 2 {
			return true
		}
		method, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || method.Sel.Name != "List" {
			return true
		}
		options, isName := call.Args[1].(*ast.Ident)
		if isName && slices.Contains(limited, options.Name) || hasLimit(call.Args[1]) {
			bounded = append(bounded, call)
		} else {
			unbounded = append(unbounded, call)
		}
		return true
	})
	return bounded, unbounded
}

// limitedOptions are names of list options in a function: parameters, which its caller limits, and variables that are made with a limit.
func limitedOptions(function *ast.FuncDecl) []string {
	var names []string
	ast.Inspect(function, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncType:
			for _, param := range n.Params.List {
				if selector, ok := param.Type.(*ast.SelectorExpr); ok && selector.Sel.Name == "ListOptions" {
					for _, name := range param.Names {
						names = append(names, name.Name)
					}
				}
			}
		case *ast.AssignStmt:
			for i, value := range n.Rhs {
				if name, ok := n.Lhs[i].(*ast.Ident); ok && hasLimit(value) {
					names = append(names, name.Name)
				}
			}
		}
		return true
	})
	return names
}

// hasLimit reports whether an expression is a literal of list options with a limit.
func hasLimit(value ast.Expr) bool {
	literal, ok := ast.Unparen(value).(*ast.CompositeLit)
	return ok && slices.ContainsFunc(literal.Elts, func(element ast.Expr) bool {
		pair, ok := element.(*ast.KeyValueExpr)
		if !ok {
			return false
		}
		key, ok := pair.Key.(*ast.Ident)
		return ok && key.Name == "Limit"
	})
}
