package inspect

import (
	"context"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// The check of CONTRIBUTING.md's example.

var kernelCheck = check{id: "host-kernel", run: checkKernel}

// checkKernel refuses kernels without the overlay file system, which came with 3.18.
func checkKernel(_ context.Context, i *inspection) error {
	if strings.HasPrefix(i.Facts.Kernel, "2.") {
		return node.Refuse("replace the node, or leave it on Docker", "kernel %s has no overlay file system", i.Facts.Kernel)
	}
	return nil
}

// TestExampleCheck: the check of CONTRIBUTING.md is this one, and it works.
func TestExampleCheck(t *testing.T) {
	nodetest.ExampleIsInGuide(t, "check")

	for kernel, refused := range map[string]bool{"2.6.32-754.el6.x86_64": true, "3.10.0-1160.el7.x86_64": false, "6.1.0-13-amd64": false} {
		i := &inspection{h: &node.Host{}, report: node.Silent{}}
		i.Facts.Kernel = kernel
		if err := i.take(t.Context(), kernelCheck); (err != nil) != refused || (len(i.findings) == 1) != refused {
			t.Errorf("kernel %s: %v, findings %v; want refused %t", kernel, err, i.findings, refused)
		}
	}
}
