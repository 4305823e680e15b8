package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/evidence"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/unit"
)

func evidenceCommand() *cobra.Command {
	var root, run, output string
	cmd := &cobra.Command{
		Use: "evidence", Short: "Collect journal, events, changed files and logs, without secrets, into a tar.gz", Args: cobra.NoArgs,
		Long: "Gather a run's journal, events, changed files and the units' logs, without secrets, into a tar.gz.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Before the root changes, so that the path means what it says here.
			out, finish, err := evidenceOut(output, cmd.OutOrStdout())
			if err != nil {
				return err
			}
			if root != "" {
				if err := enter(root); err != nil {
					return err
				}
			}
			if err := gather(cmd.Context(), run, out); err != nil {
				return err
			}
			return finish()
		},
	}
	cmd.Flags().StringVar(&root, "host", "", "in a pod: where the host's root directory is mounted")
	cmd.Flags().StringVar(&run, "run", "", "the run; by default the last one")
	cmd.Flags().StringVarP(&output, "output", "o", "", "the file to write, - for the standard output")
	_ = cmd.MarkFlagRequired("output") // fails only for a flag that does not exist
	return cmd
}

func gather(ctx context.Context, run string, out io.Writer) error {
	layout, systemd := unit.Layout{Root: "/"}, host.Systemd{Run: host.Exec{}}
	if run == "" {
		current, err := layout.Current() // not Find: a journal that cannot be used is a reason to gather
		if err != nil {
			return err
		}
		if run = current; run == "" {
			return errNoRun
		}
	}
	var status bytes.Buffer
	if err := printStatus(ctx, &status, ""); err != nil {
		fmt.Fprintln(&status, err)
	}
	c := &evidence.Collector{
		Layout: layout, Run: run, Runner: systemd.Run, Now: time.Now, Extra: map[string][]byte{"status.txt": status.Bytes()},
	}
	return c.Write(ctx, out)
}

// evidenceOut returns where the archive goes, and what completes it.
func evidenceOut(output string, stdout io.Writer) (io.Writer, func() error, error) {
	if output == "-" {
		return stdout, func() error { return nil }, nil
	}
	file, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("write evidence: %w", err)
	}
	return file, func() error {
		if err := file.Close(); err != nil {
			return fmt.Errorf("write evidence: %w", err)
		}
		_, err := fmt.Fprintln(stdout, "evidence is in "+output)
		return err
	}, nil
}
