// Command cri-dockerd is upstream's CRI shim for Docker Engine, built from its module for the lab's nodes.
package main

import (
	"fmt"
	"os"

	"github.com/Mirantis/cri-dockerd/cmd"
	"k8s.io/apiserver/pkg/server"
)

func main() {
	if err := cmd.NewDockerCRICommand(server.SetupSignalHandler()).Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
