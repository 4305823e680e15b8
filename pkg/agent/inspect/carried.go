package inspect

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var carriedCheck = check{id: protocol.CheckCarried, warning: protocol.CheckContainerdFile, needs: []string{protocol.CheckDocker, protocol.CheckDockerConfig, protocol.CheckContainerd, protocol.CheckNetwork}, run: checkCarried}

// checkCarried tries what containerd-config will do, so that what cannot be done refuses the switch and warnings come first.
func checkCarried(ctx context.Context, i *inspection) error {
	if err := findSandboxAuth(ctx, i); err != nil {
		return err
	}
	config, err := desired.Containerd(ctx, i.h, i.Found)
	if err != nil {
		return err
	}
	i.layout = config.Layout
	_, warnings, err := desired.CarriedFiles(ctx, i.h, i.Found, config)
	for _, warning := range warnings {
		i.warn("%s", warning)
	}
	return err
}

// findSandboxAuth finds the file with credentials for the sandbox image's registry. The kubelet with dockershim, or cri-dockerd, pulls
// that image with what it finds there; containerd does not look. The places are those of pkg/credentialprovider/config.go of
// Kubernetes, whose first file that can be read is the one.
func findSandboxAuth(ctx context.Context, i *inspection) error {
	p, err := i.h.Systemd.Show(ctx, kubelet.Unit, "MainPID")
	if err != nil {
		return err
	}
	pid := p["MainPID"]
	if !i.Dockershim() {
		processes, err := host.FindProcesses(node.Proc, "cri-dockerd")
		if err != nil {
			return err
		}
		if len(processes) > 0 {
			pid = strconv.Itoa(processes[0].PID)
		}
	}
	rootDir, _ := i.setup.Flag("root-dir")
	i.SandboxAuthFile = sandboxAuthFile(credentialFiles(node.Proc, pid, rootDir), i.Facts.SandboxImage)
	return nil
}

func credentialFiles(proc, pid, rootDir string) []string {
	if rootDir == "" {
		rootDir = "/var/lib/kubelet"
	}
	files := []string{filepath.Join(rootDir, "config.json"), "/config.json"}
	environ, _ := os.ReadFile(filepath.Join(proc, pid, "environ"))
	for variable := range strings.SplitSeq(string(environ), "\x00") {
		if home, ok := strings.CutPrefix(variable, "HOME="); ok {
			files = append(files, filepath.Join(home, ".docker/config.json"))
		}
	}
	return append(files, "/.docker/config.json")
}

func sandboxAuthFile(files []string, image string) string {
	for _, file := range files {
		auth, err := desired.RegistryAuth(file, image)
		if err == nil && auth != "" {
			return file
		}
		if err == nil {
			return ""
		}
	}
	return ""
}
