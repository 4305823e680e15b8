package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/canary"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/steps"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/supervise"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/unit"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "runtime-agent",
		Short:         "Moves this Kubernetes node from Docker Engine to containerd; kubectl runtime drives it",
		SilenceUsage:  true,
		SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{
			DisableDefaultCmd: true,
		},
	}
	root.AddCommand(superviseCommand(), askCommand(), planCommand(), runCommand(), statusCommand(), resumeCommand(), rollbackCommand(), evidenceCommand(), canaryCommand(), sleepCommand(),
		&cobra.Command{
			Use: "version", Short: "Print the version", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
				return err
			},
		})
	return root
}

func superviseCommand() *cobra.Command {
	var root, specJSON string
	var wait bool
	cmd := &cobra.Command{
		Use: "supervise", Short: "In the Job's pod: have the host do a phase, and report", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := readHostSpec(specJSON)
			if err != nil {
				return err
			}
			return superviseIn(cmd.Context(), root, spec, wait, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	specFlags(cmd, &root, &specJSON)
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the phase is asked for with runtime-agent ask, for an hour")
	return cmd
}

func askCommand() *cobra.Command {
	var root, specJSON string
	cmd := &cobra.Command{
		Use: "ask", Short: "In a waiting pod: start the cutover", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := readHostSpec(specJSON)
			if err != nil {
				return err
			}
			if err := enter(root); err != nil {
				return err
			}
			s := &supervise.Supervisor{Spec: spec, Layout: unit.Layout{Root: "/"}, Out: io.Discard}
			if err := s.Ask(); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "asked")
			return err
		},
	}
	specFlags(cmd, &root, &specJSON)
	return cmd
}

func specFlags(cmd *cobra.Command, root, specJSON *string) {
	cmd.Flags().StringVar(root, "host", "/host", "where the host's root directory is mounted")
	cmd.Flags().StringVar(specJSON, "spec", "", "the Spec, as JSON")
	_ = cmd.MarkFlagRequired("spec") // fails only for a flag that does not exist
}

// readHostSpec reads the Spec of a phase that changes the host.
func readHostSpec(specJSON string) (protocol.Spec, error) {
	spec, err := readSpec(specJSON)
	if err == nil && spec.Phase == protocol.PhasePlan {
		err = fmt.Errorf("read --spec: phase %s changes nothing on the host and is not for this command", spec.Phase)
	}
	return spec, err
}

// superviseIn opens what the pod has and then makes the host's root its own: from there on, paths, links and programs are the host's.
func superviseIn(ctx context.Context, root string, spec protocol.Spec, wait bool, out, errOut io.Writer) error {
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("open the agent's program: %w", err)
	}
	defer func() { _ = program.Close() }()
	info, err := program.Stat()
	if err != nil {
		return fmt.Errorf("open the agent's program: %w", err)
	}
	// Where the pod has one. It is read where the pod's log cannot be.
	termination, terminationErr := os.OpenFile("/dev/termination-log", os.O_WRONLY, 0)
	if err := enter(root); err != nil {
		return err
	}
	s := &supervise.Supervisor{
		Spec: spec, Layout: unit.Layout{Root: "/"}, Systemd: host.Systemd{Run: host.Exec{}},
		Program: program, Size: info.Size(), Out: out, Err: errOut, Wait: wait,
	}
	_, err = s.Run(ctx)
	if terminationErr == nil {
		message := s.Termination()
		if err != nil {
			message = []byte(err.Error())
		}
		_, _ = termination.Write(message)
		_ = termination.Close()
	}
	return err
}

// realClock is the engine's clock outside of tests.
type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func runCommand() *cobra.Command {
	return &cobra.Command{
		Use: "run", Short: "As the host unit: do what is open or asked for", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			program, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find the agent's program: %w", err)
			}
			systemd := host.Systemd{Run: host.Exec{}}
			u := &unit.Unit{
				Layout: unit.Layout{Root: "/"}, Systemd: systemd, Machine: host.MachineID(), Program: program, Clock: realClock{},
				Work: func(spec protocol.Spec, dir string, records func() []journal.Record) unit.Work {
					h := &node.Host{Spec: spec, RunDir: dir, Runner: host.Exec{}, Systemd: systemd, Records: records}
					return unit.Work{
						Steps: steps.List(h), Timeout: steps.Timeout(spec),
						Finish: func(ctx context.Context, r *protocol.Result) { steps.Finish(ctx, h, r) },
					}
				},
			}
			u.Rescue = func(ctx context.Context) ([]string, error) { return steps.Rescue(ctx, systemd) }
			u.Log = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			// Interrupted is an error, too: systemd starts the unit again unless it was stopped by a command.
			return u.Serve(cmd.Context())
		},
	}
}

func canaryCommand() *cobra.Command {
	parent := &cobra.Command{Use: "canary", Short: "In the canary pod: check what applications rely on"}
	o := canary.Options{Getenv: os.Getenv, CgroupRoot: "/sys/fs/cgroup"}
	serve := &cobra.Command{
		Use: "serve", Short: "Check, print the results as JSON, answer probes at /healthz", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = cmd.OutOrStdout()
			return canary.Serve(cmd.Context(), o)
		},
	}
	serve.Flags().StringVar(&o.Dir, "dir", "", "a volume to write to and read from")
	serve.Flags().IntVar(&o.Port, "port", 8080, "where to answer probes")
	serve.Flags().Int64Var(&o.ExpectMemory, "expect-memory-bytes", 0, "the memory limit that the container is to have")
	parent.AddCommand(serve)
	return parent
}

func sleepCommand() *cobra.Command {
	return &cobra.Command{
		Use: "sleep", Short: "In the rehearsal's container: say so, and wait to be stopped", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "runtime-agent "+version+" sleeps")
			<-cmd.Context().Done()
			return err
		},
	}
}
