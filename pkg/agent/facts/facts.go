// Package facts holds what the step inspect found on the host: its memo in the journal, and the base of every later step. It reads the
// host only for what the memo does not hold. The names of its JSON fields stay: an agent reads memos of earlier releases.
package facts

import (
	"fmt"
	"os"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Found is what the step inspect found.
type Found struct {
	Facts protocol.Facts `json:"facts"`

	KubeletArgs      []string `json:"kubeletArgs"`
	KubeletUnitFiles []string `json:"kubeletUnitFiles"`
	HealthzURL       string   `json:"healthzURL"`
	// Kubeconfig is the kubelet's; empty if it cannot be used to look at the node.
	Kubeconfig string `json:"kubeconfig,omitempty"`

	// Docker are the settings that others take over.
	Docker       translate.Settings `json:"docker,omitzero"`
	DockerSocket string             `json:"dockerSocket"`
	// SandboxAuthFile holds credentials for the sandbox image's registry, if it needs any.
	SandboxAuthFile string `json:"sandboxAuthFile,omitempty"`
	CNIConfDir      string `json:"cniConfDir"`
	CNIBinDir       string `json:"cniBinDir"`

	ContainerdBinary  string `json:"containerdBinary"`
	ContainerdConfig  string `json:"containerdConfig"`
	ContainerdAddress string `json:"containerdAddress"`
	// ContainerdRoot is that of the service's own flag, if it has one.
	ContainerdRoot string `json:"containerdRoot,omitempty"`
	// Install is how a containerd that fits is installed; nil where the host has one.
	Install *Installation `json:"install,omitempty"`
	// Running are Docker's and cri-dockerd's units that ran.
	Running []string `json:"running,omitempty"`
	// Kernel are the settings that Docker may have made; nil in what an older agent found.
	Kernel *KernelSettings `json:"kernel,omitempty"`
	// PodLimits are a Docker pod's; none if there was no pod to look at.
	PodLimits []translate.Limit `json:"podLimits,omitempty"`
	// PrivateContainerd says that Docker ran a containerd of its own.
	PrivateContainerd bool `json:"privateContainerd,omitempty"`
	// RestrictOOM is set on hosts that cannot lower oom_score_adj.
	RestrictOOM bool `json:"restrictOOM,omitempty"`
}

// Dockershim reports whether the kubelet talked to Docker itself.
func (i Found) Dockershim() bool { return i.Facts.OldEndpoint == kubelet.Dockershim }

// Kubelet returns the setup of the kubelet as it ran when the host was inspected.
func (i Found) Kubelet() (kubelet.Setup, error) {
	version, err := kubelet.ParseVersion(i.Facts.KubeletVersion)
	return kubelet.Setup{
		Version: version, Args: i.KubeletArgs, UnitFiles: i.KubeletUnitFiles,
		Read: os.ReadFile, ListConfigDir: kubelet.ListConfigDir,
		LogMaxSize: i.Docker.LogMaxSize, LogMaxFiles: i.Docker.LogMaxFiles,
	}, err
}

// InspectID is the step that Found is the memo of.
const InspectID = "inspect"

// Of returns what the step inspect found, from the run's journal.
func Of(h *node.Host) (Found, error) {
	raw, ok := engine.LastMemo(h.Records(), InspectID)
	if !ok {
		return Found{}, fmt.Errorf("read what was found on the host: the journal does not hold it")
	}
	return node.Decode[Found](InspectID, raw)
}

// ApartAddress is where containerd listens beside a Docker that runs a containerd of its own. Such a Docker, started without --containerd,
// looks for a file at containerd's usual address and takes that containerd, whoever runs it (moby 20.10 to 28, cmd/dockerd/daemon.go,
// systemContainerdRunning). It would lose sight of every container that it left running, and the kubelet would start them a second time.
const ApartAddress = "/run/containerd/containerd-cri.sock"
