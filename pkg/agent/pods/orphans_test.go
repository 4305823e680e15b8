package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// restarts is a systemd with a containerd that must not be restarted, and counts what is.
type restarts struct{ count int }

func (r *restarts) Run(_ context.Context, _ string, args ...string) (string, error) {
	switch args[0] {
	case "show":
		return fmt.Sprintf("MainPID=%d\nControlGroup=/x\nKillMode=none\n", os.Getpid()), nil
	case "restart":
		r.count++
	}
	return "", nil
}

// TestNoRestart: whoever set the mode since the inspection, going on refuses, and an undo leaves containerd as it runs.
func TestNoRestart(t *testing.T) {
	systemd, report := &restarts{}, &warned{}
	h := &node.Host{Systemd: host.Systemd{Run: systemd}}
	var refused *node.Refusal
	if err := RestartContainerd(t.Context(), h, report); !errors.As(err, &refused) || len(report.warnings) > 0 {
		t.Errorf("%v, %q", err, report.warnings)
	}
	if err := RestartContainerdForUndo(t.Context(), h, report); err != nil || len(report.warnings) != 1 || !strings.Contains(report.warnings[0], "KillMode=none") {
		t.Errorf("%v, %q", err, report.warnings)
	}
	if systemd.count > 0 {
		t.Error("containerd was restarted")
	}
}
