package host_test

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

func TestOutlive(t *testing.T) {
	type key struct{}
	ended, end := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	end()
	ctx, cancel := host.Outlive(ended, time.Minute)
	defer cancel()
	deadline, ok := ctx.Deadline()
	if left := time.Until(deadline); ctx.Err() != nil || !ok || left > time.Minute || ctx.Value(key{}) != "value" {
		t.Errorf("%v, %s left, value %v", ctx.Err(), left, ctx.Value(key{}))
	}
}

// TestOnlyOutliveDetaches: no code of the agent makes a context that ends neither with the phase nor with a deadline of its own.
func TestOnlyOutliveDetaches(t *testing.T) {
	files := 0
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() && entry.Name() == "agenttest" {
			return skipDir(err)
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || path == "../host/outlive.go" {
			return nil
		}
		files++
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				from, ok := s.X.(*ast.Ident)
				if ok && from.Name == "context" && slices.Contains([]string{"WithoutCancel", "Background", "TODO"}, s.Sel.Name) {
					t.Errorf("%s: context.%s: use host.Outlive, which has a timeout", set.Position(s.Pos()), s.Sel.Name)
				}
			}
			return true
		})
		return nil
	})
	if err != nil || files < 100 {
		t.Errorf("looked at %d files: %v", files, err)
	}
}

func skipDir(err error) error {
	if err != nil {
		return err
	}
	return fs.SkipDir
}
