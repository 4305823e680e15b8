package inspect

import (
	"context"
	"os"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var apiCheck = check{id: protocol.CheckAPI, warning: protocol.CheckAPI, needs: []string{protocol.CheckKubelet}, run: checkAPI}

// checkAPI tries the kubelet's own credentials, with which the host watches the node after the switch.
func checkAPI(ctx context.Context, i *inspection) error {
	path, _ := i.setup.Flag("kubeconfig")
	if path == "" {
		i.warn("the kubelet has no --kubeconfig: the host cannot tell by itself whether the API server sees the node as Ready")
		return nil
	}
	if err := tryAPI(ctx, i, path); err != nil {
		if ctx.Err() != nil {
			return err
		}
		i.warn("the host cannot tell by itself whether the API server sees the node as Ready: %v", err)
		return nil
	}
	i.Kubeconfig = path
	return nil
}

// apiWait is for how long an API server that does not answer is asked again: one that is missed for a moment must not cost the switch its
// proof that the node is Ready. One that is not reached at all may be behind a proxy that only the kubelet's unit names.
const apiWait = 30 * time.Second

func tryAPI(ctx context.Context, i *inspection, kubeconfig string) error {
	api, err := kubelet.NewAPI(os.ReadFile, kubeconfig)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, apiWait)
	defer cancel()
	return host.Poll(ctx, time.Second, func(ctx context.Context) error {
		_, err := api.Node(ctx, i.h.Spec.Node)
		if err != nil && !kubelet.MayPass(err) {
			err = host.Permanent(err)
		}
		return err
	})
}
