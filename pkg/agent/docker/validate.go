package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// validateTimeout bounds the check; dockerd takes a tenth of a second for it.
const validateTimeout = 15 * time.Second

// RefusedError is what dockerd says of a configuration with which it would not start.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

// Validate asks a dockerd from 23.0 on whether it would start with these arguments (the program's name first) and environment, and the
// configuration file that they name. It starts nothing, listens nowhere and writes nothing (moby cmd/dockerd, --validate). An answer of no is a
// *RefusedError; any other error tells that it did not answer.
func Validate(ctx context.Context, dockerd string, args, environ []string) error {
	ctx, cancel := context.WithTimeout(ctx, validateTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, dockerd, append(args[min(1, len(args)):len(args):len(args)], "--validate")...)
	cmd.Dir = "/"
	for _, variable := range environ {
		// Whatever systemd gave the running one to report to, or to listen at, is not for this one.
		if variable != "" && !strings.HasPrefix(variable, "NOTIFY_SOCKET=") && !strings.HasPrefix(variable, "LISTEN_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	said := strings.TrimSpace(out.String())
	switch {
	case err == nil:
		return nil
	case ctx.Err() == nil && errors.As(err, &exit) && exit.Exited() && said != "" && !strings.Contains(said, "unknown flag: --validate"):
		return &RefusedError{lastLine(said)}
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	return fmt.Errorf("%s --validate: %w: %s", dockerd, err, lastLine(said))
}

// lastLine is the error; lines of a log may come before it.
func lastLine(text string) string { return text[strings.LastIndexByte(text, '\n')+1:] }
