package inspect

import (
	"errors"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestLookAtUnits: a tie between units that only starts them together does no harm while one of them is held.
func TestLookAtUnits(t *testing.T) {
	for _, test := range []struct{ kubelet, docker, refused, warned string }{
		{kubelet: "Requires=system.slice sysinit.target", docker: "Requires=docker.socket"},
		{kubelet: "Requires=docker.service", warned: "kubelet.service has Requires=docker.service"},
		{kubelet: "PartOf=docker.service"},
		{docker: "BindsTo=containerd.service", refused: "docker.service has BindsTo=containerd.service"},
		{docker: "Requires=containerd.service", refused: "docker.service has Requires=containerd.service"},
	} {
		units := nodetest.Says{"kubelet.service": test.kubelet + "\nFragmentPath=/etc/k.service\n", "docker.service": test.docker + "\n"}
		i := &inspection{h: &node.Host{Systemd: host.Systemd{Run: units}}}
		err := checkUnits(t.Context(), i)
		if (err == nil) != (test.refused == "") || err != nil && !strings.Contains(err.Error(), test.refused) {
			t.Errorf("%+v: refused with %v", test, err)
		}
		if warnings := strings.Join(i.Facts.Warnings, "\n"); (warnings == "") != (test.warned == "") || !strings.Contains(warnings, test.warned) {
			t.Errorf("%+v: warnings %q", test, warnings)
		}
	}
}

// TestLookAtDependents: what systemd stops with Docker's units is reported, and the kubelet must not be among it.
func TestLookAtDependents(t *testing.T) {
	const up, down = "LoadState=loaded\nActiveState=active\n", "LoadState=loaded\nActiveState=inactive\n"
	for _, test := range []struct {
		unit, says      string
		keep            bool
		refused, warned string
	}{
		{unit: "docker.service", says: "RequiredBy=kubelet.service cri-docker.service"},
		{unit: "docker.service", says: "ConsistsOf=cri-docker.service docker.socket"},
		{unit: "docker.service", says: "RequiredBy=agent.service kubelet.service", warned: "agent.service is stopped together with docker.service"},
		{unit: "docker.service", says: "RequiredBy=off.service"},
		{unit: "docker.socket", says: "ConsistsOf=agent.service\nBoundBy=agent.service", warned: "agent.service is stopped together with docker.socket"},
		{unit: "docker.socket", says: "BoundBy=kubelet.service", refused: "kubelet.service has BindsTo=docker.socket"},
		{unit: "cri-docker.service", says: "BoundBy=kubelet.service", refused: "kubelet.service has BindsTo=cri-docker.service"},
		{unit: "cri-docker.service", says: "RequisiteOf=kubelet.service", refused: "kubelet.service has Requisite=cri-docker.service"},
		{unit: "cri-docker.service", says: "BoundBy=kubelet.service", keep: true, refused: "kubelet.service has BindsTo=cri-docker.service"},
		{unit: "docker.service", says: "RequiredBy=agent.service", keep: true},
	} {
		units := nodetest.Says{"docker.service": up, "docker.socket": up, "cri-docker.service": up, "agent.service": up, "off.service": down, kubelet.Unit: "DropInPaths=/etc/k.conf\n"}
		units[test.unit] += test.says + "\n"
		i := &inspection{h: &node.Host{Systemd: host.Systemd{Run: units}, Spec: protocol.Spec{KeepDocker: test.keep}}}
		err := checkUnits(t.Context(), i)
		if (err == nil) != (test.refused == "") || err != nil && !strings.Contains(err.Error(), test.refused) {
			t.Errorf("%+v: refused with %v", test, err)
		}
		var refused *node.Refusal
		if errors.As(err, &refused) && !strings.Contains(refused.Hint(), "/etc/k.conf") {
			t.Errorf("%+v: the hint %q does not name the file", test, refused.Hint())
		}
		if warnings := strings.Join(i.Facts.Warnings, "\n"); (warnings == "") != (test.warned == "") || !strings.Contains(warnings, test.warned) {
			t.Errorf("%+v: warnings %q", test, warnings)
		}
	}
}
