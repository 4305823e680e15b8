package translate_test

import (
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
)

// TestOddDaemonJSON: whatever lies where daemon.json is looked for, or runs as dockerd, the agent goes on, or refuses.
func TestOddDaemonJSON(t *testing.T) {
	agenttest.TryOddFiles(t, func(data []byte) {
		_, _, _ = translate.Docker(translate.Input{File: "f", Data: data})
		_, _, _ = translate.Docker(translate.Input{Args: []string{"dockerd", "--log-opt", string(data), string(data)}, Environ: []string{string(data), "HTTP_PROXY=" + string(data)}})
		_ = translate.ConfigFile([]string{"dockerd", "--config-file", string(data)})
	})
}
