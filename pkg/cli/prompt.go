package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/access"
)

// PermissionError explains why permissions are not enough, or were not learnt.
func (f *Factory) PermissionError(err error) error {
	var missing *access.PermissionError
	if errors.As(err, &missing) {
		return (&ExitError{Code: ExitRefused, Err: err}).
			WithHint("`%s` shows whether you have one", f.Kubectl(append([]string{"auth", "can-i"}, strings.Fields(missing.Missing[0].String())...)...))
	}
	return f.Explain("check", "permissions", "", err)
}

// WarnMissing says which rights a command would use if the user had them.
func (f *Factory) WarnMissing(command string, missing []access.Permission) {
	if len(missing) > 0 {
		fmt.Fprintf(f.Streams.ErrOut, "warning: %s; %s goes without them\n", &access.PermissionError{Missing: missing}, command)
	}
}

// Confirm reads the answer to a question, and returns an error unless it is yes.
func (f *Factory) Confirm(ctx context.Context) error {
	answer := make(chan string, 1)
	go func() {
		// A signal does not end the read; the process does.
		line, _ := bufio.NewReader(f.Streams.In).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case text := <-answer:
		if text != "y" && text != "yes" {
			return Exitf(ExitGeneral, "not confirmed; nothing was changed")
		}
		return nil
	}
}

// HasTerminal reports whether somebody can answer.
func (f *Factory) HasTerminal() bool {
	in, ok := f.Streams.In.(*os.File)
	return ok && term.IsTerminal(int(in.Fd()))
}
