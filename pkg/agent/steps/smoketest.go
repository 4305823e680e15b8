package steps

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// smokeTest is the rehearsal once more while the kubelet is stopped, on the host's network: docker-pods has stopped the CNI's own pods, without
// whose agent many plugins (Cilium, AWS VPC CNI, Antrea and others) fail. The rehearsal has proved the pod network.
func smokeTest(h *node.Host) engine.Step {
	const id = "smoke-test"
	return step[nothing]{
		id: id, title: "Run a pod sandbox on the host's network while the kubelet is stopped", record: recordNothing,
		apply: func(ctx context.Context, _ nothing, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			if _, err := waitForCRI(ctx, h, found, runtimeReady); err != nil {
				return err
			}
			options := smokeOptions(h, found, id, report)
			options.HostNetwork = true
			return runSmoke(ctx, h, found, options, nil, report)
		},
	}
}
