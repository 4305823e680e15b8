package unit

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Withdraw takes back what was asked for a phase that never began, and the unit with it, so that no later boot begins it. It is an
// error if an agent is at work or the run has begun.
func Withdraw(ctx context.Context, l Layout, systemd host.Systemd, run string, phase protocol.Phase) error {
	unlock, err := lock(filepath.Join(l.dir(), "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if _, records, err := journal.Read(l.RunDir(run)); err != nil || len(records) > 0 {
		return errors.Join(fmt.Errorf("withdraw phase %s of run %s: it has begun", phase, run), err)
	}
	if err := host.Remove(l.Requests().specPath(run, phase)); err != nil {
		return err
	}
	return uninstall(ctx, l, systemd)
}
