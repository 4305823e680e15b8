// Command kubectl-runtime is a kubectl plugin that moves nodes from Docker Engine to containerd. Under the name
// kubectl_complete-runtime it answers kubectl's questions for shell completion. Everything but the process itself, its signals
// and its end, is in pkg/plugin.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"k8s.io/cli-runtime/pkg/genericiooptions"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // the credential plugins that a kubeconfig may name

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/plugin"
)

// version and agentDigest are set by the linker. agentDigest is that of the agent's image of this release, "sha256:…".
var (
	version     = "dev"
	agentDigest string
)

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		cancel(&cli.SignalError{Signal: <-signals})
		// Whoever sends a second signal does not want to wait for what the first one set off.
		second := &cli.SignalError{Signal: <-signals}
		os.Exit(second.ExitCode())
	}()
	os.Exit(plugin.Run(ctx, plugin.Invocation{
		Name:    os.Args[0],
		Args:    os.Args[1:],
		Streams: genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
		Version: version, AgentDigest: agentDigest, ClientGo: clientGo(),
	}))
}

// clientGo is the version of client-go that this binary was built with, empty in a build without module information.
func clientGo() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, module := range info.Deps {
		if module.Path == "k8s.io/client-go" {
			return module.Version
		}
	}
	return ""
}
