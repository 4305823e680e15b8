// Command kubernetes-1.23-control-plane is the API server of Kubernetes 1.23, built from the upstream module for tests. The kubelet of
// 1.23 is a program of its own, since it needs no generated code.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
