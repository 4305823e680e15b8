package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/unit"
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
	var format string
	cmd := &cobra.Command{
		Use: "status", Short: "On the node: show how far the switch is, and what to type next", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "" && format != "json" {
				return fmt.Errorf("--output %s: it is json or nothing", format)
			}
			return printStatus(cmd.Context(), cmd.OutOrStdout(), format)
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "", "json for machines")
	return cmd
}

func printStatus(ctx context.Context, out io.Writer, format string) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the agent's program: %w", err)
	}
	systemd := host.Systemd{Run: host.Exec{}}
	s, err := readStatus(ctx, unit.Layout{Root: "/"}, systemd, program, host.MachineID(), func() (string, error) {
		setup, err := kubelet.AtRest(ctx, systemd)
		if err != nil {
			return "", err
		}
		return setup.Endpoint()
	})
	if err != nil {
		return err
	}
	return s.print(out, format)
}

func resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resume", Short: "On the node: resume the open phase", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			layout := unit.Layout{Root: "/"}
			return resume(layout, host.MachineID(), func() error { return start(cmd.Context(), layout, cmd.OutOrStdout()) })
		},
	}
}

func rollbackCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rollback", Short: "On the node: undo everything that the last switch changed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			layout := unit.Layout{Root: "/"}
			if err := askRollback(layout, host.MachineID()); err != nil {
				return err
			}
			return start(cmd.Context(), layout, cmd.OutOrStdout())
		},
	}
}

// resume has the host unit go on. With a journal that does not tell what to go on from, all it can do is to give a held kubelet back.
func resume(layout unit.Layout, machine string, start func() error) error {
	run, err := currentRun(layout)
	if err != nil {
		return err
	}
	_, _, unusable := journal.ReadHere(layout.RunDir(run), machine)
	if unusable != nil && host.Absent(layout.Hold()) {
		return unusable
	}
	return errors.Join(start(), unusable)
}

// askRollback leaves for the host unit that the last run is to be undone, unless its journal does not tell what to undo.
func askRollback(layout unit.Layout, machine string) error {
	run, err := currentRun(layout)
	if err != nil {
		return err
	}
	if _, _, err := journal.ReadHere(layout.RunDir(run), machine); err != nil {
		return err
	}
	return layout.Requests().AskRollback(run)
}

// start has the host unit go to work, and returns when it has ended.
func start(ctx context.Context, layout unit.Layout, out io.Writer) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the agent's program: %w", err)
	}
	systemd := host.Systemd{Run: host.Exec{}}
	if err := unit.Install(ctx, layout, systemd, program); err != nil {
		return err
	}
	if err := systemd.Start(ctx, host.Unit); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, "waiting; you can interrupt this, the host unit "+host.Unit+" continues"); err != nil {
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
	return printStatus(ctx, out, "")
}
