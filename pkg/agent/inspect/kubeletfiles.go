package inspect

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var kubeletFilesCheck = check{id: protocol.CheckKubeletFiles, warning: protocol.CheckLogRotation, needs: []string{protocol.CheckDockerConfig, protocol.CheckContainerd}, run: checkKubeletFiles}

// checkKubeletFiles makes sure that the cutover will know how to change the kubelet's flags.
func checkKubeletFiles(_ context.Context, i *inspection) error {
	i.setup.LogMaxSize, i.setup.LogMaxFiles = i.Docker.LogMaxSize, i.Docker.LogMaxFiles
	if i.setup.LogMaxSize > 0 && i.setup.ConfigFile() == "" {
		i.warn("Docker's log-opts are lost: the kubelet has no config file that could hold containerLogMaxSize")
	}
	if _, err := i.setup.Plan(i.Facts.NewEndpoint); err != nil {
		return err
	}
	return nil
}
