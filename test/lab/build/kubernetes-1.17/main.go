// Command kubernetes-1.17 is the API server of Kubernetes 1.17, built from the upstream module for tests.
package main

import (
	"os"

	"k8s.io/component-base/logs"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	logs.InitLogs()
	err := app.NewAPIServerCommand().Execute()
	logs.FlushLogs()
	if err != nil {
		os.Exit(1)
	}
}
