// Package host is the only place where the agent changes the host: files, with what is needed to put them back byte for
// byte, and systemd units. It also runs programs.
//
// It decides nothing: pkg/agent/steps says what to change, and calls it. Undo data goes through the engine's journal.
package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Where the agent keeps its things on the host.
const (
	// Dir holds everything of the agent's: runs, the current run, the lock, the program.
	Dir = "/var/lib/kubectl-runtime"
	// HoldFile keeps systemd from starting the kubelet while it exists.
	HoldFile = Dir + "/kubelet-hold"
	// Unit is the host unit's name.
	Unit = "kubectl-runtime.service"
	// UnitPath is its file.
	UnitPath = "/etc/systemd/system/" + Unit
)

// Runner runs programs; faked in tests like os/exec.
type Runner interface {
	// Run returns the standard output. An error is a *CommandError.
	Run(ctx context.Context, name string, args ...string) (stdout string, err error)
}

// CommandError is a program that failed, with what it said.
type CommandError struct {
	Command string
	Output  string // standard output, then standard error
	Err     error
}

func (e *CommandError) Error() string {
	text := fmt.Sprintf("%s: %v", e.Command, e.Err)
	if line := lastLine(e.Output); line != "" {
		text += ": " + line
	}
	return text
}

func (e *CommandError) Unwrap() error { return e.Err }

// Detail returns the captured output.
func (e *CommandError) Detail() string { return e.Output }

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// Exec runs programs of the host.
type Exec struct{}

// Run implements Runner. When ctx ends the program gets SIGINT, and SIGKILL 5 s later.
func (Exec) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	// In a container with the host's root, systemctl must not take itself for being in a chroot; and it asks nobody.
	cmd.Env = append(os.Environ(), "SYSTEMD_IGNORE_CHROOT=1", "SYSTEMD_PAGER=", "LC_ALL=C", "PATH="+searchPath())
	if name == "systemctl" {
		// Else it has the links of an init script of the same name renamed, too, which mean nothing where systemd has the unit.
		cmd.Env = append(cmd.Env, "SYSTEMCTL_SKIP_SYSV=1")
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return stdout.String(), &CommandError{Command: strings.Join(append([]string{name}, args...), " "), Output: stdout.String() + stderr.String(), Err: err}
	}
	return stdout.String(), nil
}

// searchPath is that of a root login: a unit's own may lack sbin, an image FROM scratch has none.
func searchPath() string {
	const usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if path := os.Getenv("PATH"); path != "" {
		return path + ":" + usual
	}
	return usual
}

// LookPath finds a program of the host's in the usual directories.
func LookPath(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range filepath.SplitList(searchPath()) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("find program %s: %w", name, exec.ErrNotFound)
}

// Poll calls check until it returns nil, each interval apart. When ctx ends, its error comes with what check said last.
func Poll(ctx context.Context, interval time.Duration, check func(ctx context.Context) error) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if permanent := (*permanentError)(nil); errors.As(err, &permanent) {
			return permanent.error
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", last, ctx.Err())
		case <-ticker.C:
		}
	}
}

type permanentError struct{ error }

// Permanent makes Poll give up with err at once.
func Permanent(err error) error { return &permanentError{err} }

// Within bounds what do may take.
func Within(ctx context.Context, d time.Duration, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return do(ctx)
}
