package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/preview"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

func planCommand() *cobra.Command {
	var root, specJSON string
	var joined bool
	cmd := &cobra.Command{
		Use: "plan", Short: "In a Job's pod: report what a switch would find and do; changes nothing", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !joined {
				if err := joinHost(); err != nil {
					fmt.Fprintln(cmd.ErrOrStderr(), err) // the container's own namespace may do
				}
			}
			spec, err := readSpec(specJSON)
			if err != nil {
				return err
			}
			if spec.Phase != protocol.PhasePlan {
				return fmt.Errorf("read --spec: phase %s is not for this command", spec.Phase)
			}
			if err := enter(root); err != nil {
				return err
			}
			return plan(cmd.Context(), spec, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&root, "host", "/host", "where the host's root directory is mounted")
	cmd.Flags().StringVar(&specJSON, "spec", "", "the Spec, as JSON")
	cmd.Flags().BoolVar(&joined, "joined", false, "set by the command itself when it has started itself again")
	_ = cmd.Flags().MarkHidden("joined") // fails only for a flag that does not exist
	_ = cmd.MarkFlagRequired("spec")
	return cmd
}

// joinHost starts this program again in the host's cgroup namespace, where /proc/<pid>/cgroup says what systemd says. It returns only
// if that fails.
func joinHost() error {
	const namespace = "/proc/1/ns/cgroup" // the pod is in the host's PID namespace
	fail := func(err error) error { return fmt.Errorf("join the host's cgroup namespace: %w", err) }
	fd, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	runtime.LockOSThread() // setns is for one thread, and exec makes that the process
	if err := unix.Setns(fd, unix.CLONE_NEWCGROUP); err != nil {
		return fail(err)
	}
	args := append(os.Args[:len(os.Args):len(os.Args)], "--joined")
	return fail(syscall.Exec("/proc/self/exe", args, os.Environ())) //nolint:gosec // it is this program with its own arguments
}

// enter makes the host's root the process's own: from there on, paths, links and programs are the host's.
func enter(root string) error {
	if err := syscall.Chroot(root); err != nil {
		return fmt.Errorf("change root to %s: %w", root, err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("change root to %s: %w", root, err)
	}
	return nil
}

// readSpec reads the Spec, with what the pod knows of itself.
func readSpec(text string) (protocol.Spec, error) {
	var spec protocol.Spec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return spec, fmt.Errorf("read --spec: %w", err)
	}
	if pod := (protocol.PodRef{Namespace: os.Getenv("POD_NAMESPACE"), Name: os.Getenv("POD_NAME"), UID: os.Getenv("POD_UID")}); pod.UID != "" {
		spec.Pod = pod
	}
	return spec, spec.Validate()
}

// sayAlive writes signs of life until the function that it returns is called.
func sayAlive(spec protocol.Spec, out io.Writer) (end func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(protocol.AliveEvery)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case now := <-ticker.C:
				if line, err := protocol.StillAlive(spec, now).Encode(); err == nil {
					_, _ = out.Write(line)
				}
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// planTimeout bounds the look at a host: a daemon that hangs must not hold the pod.
const planTimeout = 2 * time.Minute

func plan(ctx context.Context, spec protocol.Spec, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	h := node.Host{
		Spec: spec, Runner: host.Exec{}, Systemd: host.Systemd{Run: host.Exec{}},
		Records: func() []journal.Record { return nil },
	}
	quiet := sayAlive(spec, out)
	survey, err := preview.Look(ctx, h)
	quiet()
	events := survey.Events(spec, time.Now())
	if err != nil {
		events[len(events)-1].Result = &protocol.Result{Outcome: protocol.OutcomeRefused, Message: err.Error()}
	}
	for _, event := range events {
		line, err := event.Encode()
		if err != nil {
			return err
		}
		if _, err := out.Write(line); err != nil {
			return fmt.Errorf("write events: %w", err)
		}
	}
	return nil
}
