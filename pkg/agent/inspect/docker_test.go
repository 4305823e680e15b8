package inspect

import (
	"slices"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// TestKernelSettingsAreFound: what Docker may have set is recorded while Docker runs.
func TestKernelSettingsAreFound(t *testing.T) {
	nodetest.InNetworkNamespace(t)
	const forward = "net.ipv4.ip_forward"
	if err := host.SetSysctl(forward, "1"); err != nil { // as dockerd does
		t.Fatal(err)
	}
	d := nodetest.StartDocker(t, &nodetest.Container{Name: "pause", Kind: "podsandbox"})
	i := &inspection{h: &node.Host{}, report: node.Silent{}, Found: facts.Found{DockerSocket: "unix://" + d.Socket}}
	_ = checkDocker(t.Context(), i) // what it says of images does not matter here
	if i.Kernel == nil || !slices.Contains(i.Kernel.On, forward) {
		t.Errorf("got %+v, want %s on", i.Kernel, forward)
	}
}
