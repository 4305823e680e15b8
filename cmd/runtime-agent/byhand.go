package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/unit"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var errNoRun = errors.New("no run of kubectl-runtime was ever made on this host")

func currentRun(l unit.Layout) (string, error) {
	run, err := l.Find()
	if err == nil && run == "" {
		err = errNoRun
	}
	return run, err
}

func statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "On the node: show how far the switch is", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			layout := unit.Layout{Root: "/"}
			run, err := currentRun(layout)
			if errors.Is(err, errNoRun) {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), err)
				return err
			}
			if err != nil {
				return err
			}
			return printStatus(cmd.OutOrStdout(), layout.RunDir(run))
		},
	}
}

func printStatus(out io.Writer, dir string) error {
	id, records, err := journal.Read(dir)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("run %s of node %s\n", filepath.Base(dir), id.Node)
	for _, phase := range []protocol.Phase{protocol.PhasePrepare, protocol.PhaseCutover, protocol.PhaseVerify, protocol.PhaseRollback} {
		if r, ok := engine.Result(records, phase); ok {
			text += fmt.Sprintf("%-9s %s: %s\n", phase, r.Outcome, r.Message)
		}
	}
	if phase, open := engine.Open(records); open {
		last := records[len(records)-1]
		text += fmt.Sprintf("%-9s open: %s %s at %s\n", phase, last.Kind, last.Step, last.Time.Format(time.RFC3339))
	}
	if !engine.Standing(records) {
		text += "nothing of this run is left on the host\n"
	}
	_, err = io.WriteString(out, text)
	return err
}

func resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resume", Short: "On the node: go on with what is open", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			layout := unit.Layout{Root: "/"}
			run, err := currentRun(layout)
			if err != nil {
				return err
			}
			return start(cmd.Context(), layout, run, cmd.OutOrStdout())
		},
	}
}

func rollbackCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rollback", Short: "On the node: undo everything that the last switch changed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			layout := unit.Layout{Root: "/"}
			run, err := currentRun(layout)
			if err != nil {
				return err
			}
			if err := layout.AskRollback(run); err != nil {
				return err
			}
			return start(cmd.Context(), layout, run, cmd.OutOrStdout())
		},
	}
}

// start has the host unit go to work, and returns when it has ended.
func start(ctx context.Context, layout unit.Layout, run string, out io.Writer) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the agent's program: %w", err)
	}
	systemd := host.Systemd{Run: host.Exec{}}
	if err := layout.Install(ctx, systemd, program); err != nil {
		return err
	}
	if err := systemd.Start(ctx, host.Unit); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, "at work; this can be interrupted, the host unit "+host.Unit+" goes on"); err != nil {
		return err
	}
	err = host.Poll(ctx, time.Second, func(ctx context.Context) error {
		state, err := systemd.State(ctx, host.Unit)
		if err == nil && state.Running() {
			err = errors.New("still at work")
		}
		return err
	})
	if err != nil {
		return err
	}
	return printStatus(out, layout.RunDir(run))
}
