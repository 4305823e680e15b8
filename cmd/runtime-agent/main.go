// Command runtime-agent is what works on the nodes: one static program that the Job's pod, the host unit and the canary pod all run.
// An administrator runs it on a node whose API server cannot be reached. It holds no Kubernetes credentials.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/unit"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/redact"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := command().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "Error:", redact.String(err.Error())) // the log of a pod or of the unit
	var detail interface {
		error
		Detail() string
	}
	if errors.As(err, &detail) {
		if text := protocol.Excerpt(redact.String(detail.Detail())); text != "" {
			fmt.Fprintln(os.Stderr, text)
		}
	}
	var hint interface {
		error
		Hint() string
	}
	if errors.As(err, &hint) && hint.Hint() != "" {
		fmt.Fprintln(os.Stderr, "Hint:", hint.Hint())
	}
	if permanent := (*unit.PermanentError)(nil); errors.As(err, &permanent) {
		os.Exit(unit.ExitPermanent)
	}
	os.Exit(1)
}
