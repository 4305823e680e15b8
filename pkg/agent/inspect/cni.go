package inspect

import (
	"context"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cni"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var networkCheck = check{id: protocol.CheckNetwork, needs: []string{protocol.CheckKubelet}, run: checkNetwork}

func checkNetwork(_ context.Context, i *inspection) error {
	i.report.Progress("CNI", 0, 0, "")
	network, err := cni.Detect(i.CNIConfDir, i.CNIBinDir)
	if err != nil {
		return err
	}
	if network.Name == "" {
		return node.Refuse("", "there is no usable CNI configuration in %s", network.ConfDir)
	}
	if len(network.Missing) > 0 {
		return node.Refuse("put them into one directory", "CNI plugin %s of %s is in none of %s",
			strings.Join(network.Missing, ", "), network.File, strings.Join(network.BinDirs, ", "))
	}
	i.CNIConfDir, i.CNIBinDir = network.ConfDir, network.BinDirs[0]
	return nil
}
