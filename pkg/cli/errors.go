package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// The exit codes; README.md lists them.
const (
	ExitOK = 0
	// ExitGeneral is any error that has no code of its own.
	ExitGeneral = 1
	// ExitRefused: a check failed, nothing was changed.
	ExitRefused = 2
	// ExitRolledBack: it failed, and the node is on its old runtime, as it was.
	ExitRolledBack = 4
	// ExitStuck: a node is left cordoned, a person is needed.
	ExitStuck = 5
	// ExitTimeout: a time that the user gave ran out.
	ExitTimeout = 124
)

// ExitError is an error with the program's exit code and what the user can do. Commands return it; Run prints it,
// once. The zero Code means ExitGeneral.
type ExitError struct {
	Code int
	Err  error
	// Detail is captured output of what failed. The lines that explain most are printed below the error, see protocol.Excerpt.
	Detail string
	// Hint is what the user can do, preferably a command that can be pasted: see Factory.Command.
	Hint string
}

func (e *ExitError) Error() string { return e.Err.Error() }

func (e *ExitError) Unwrap() error { return e.Err }

// Exitf makes an ExitError without a hint; the format is fmt.Errorf's.
func Exitf(code int, format string, args ...any) *ExitError {
	return &ExitError{Code: code, Err: fmt.Errorf(format, args...)}
}

// WithHint sets the hint of an ExitError that was just made.
func (e *ExitError) WithHint(format string, args ...any) *ExitError {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// SignalError is the cause of a context that ended because of a signal.
type SignalError struct{ Signal os.Signal }

func (e *SignalError) Error() string {
	if e.Signal == os.Interrupt {
		return "interrupted"
	}
	return "ended by signal: " + e.Signal.String()
}

// ExitCode is the shell's convention: 128 plus the signal's number, 130 for an interrupt.
func (e *SignalError) ExitCode() int {
	if number, ok := e.Signal.(syscall.Signal); ok {
		return 128 + int(number)
	}
	return 130
}

// ExitCode is what the process ends with for err. A code that a command chose wins over the signal that made it end.
func ExitCode(ctx context.Context, err error) int {
	if err == nil {
		return ExitOK
	}
	var exit *ExitError
	if errors.As(err, &exit) && exit.Code != 0 {
		return exit.Code
	}
	var signal *SignalError
	if errors.As(err, &signal) || errors.As(context.Cause(ctx), &signal) {
		return signal.ExitCode()
	}
	return ExitGeneral
}

// The bounds of what is printed of an error, in lines and bytes.
const (
	maxErrorLines = 200
	maxErrorText  = 32 << 10
)

// PrintError writes what a user reads of err: the error, the captured output, the hint. A bare signal is no news to the one
// who sent it. Only this program's own words begin a line: what follows the first line of an error is indented, and captured output is
// marked, so that neither can pass for a hint.
func PrintError(w io.Writer, err error) {
	if _, isSignal := err.(*SignalError); isSignal { //nolint:errorlint // a wrapped one says what was interrupted
		return
	}
	var text strings.Builder
	indented := func(first, other, words string) {
		words = untrusted.Block(words, maxErrorLines, maxErrorText)
		text.WriteString(first + strings.ReplaceAll(words, "\n", "\n"+other) + "\n")
	}
	indented("error: ", "  ", err.Error())
	var exit *ExitError
	if errors.As(err, &exit) {
		if detail := protocol.Excerpt(exit.Detail); detail != "" {
			indented("  | ", "  | ", detail)
		}
		if exit.Hint != "" {
			indented("hint: ", "  ", exit.Hint)
		}
	}
	_, _ = io.WriteString(w, text.String())
}
