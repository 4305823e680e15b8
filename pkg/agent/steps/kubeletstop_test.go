package steps

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestKubeletStopRefusesBrokenHold: such a drop-in is found once more before the kubelet is stopped.
func TestKubeletStopRefusesBrokenHold(t *testing.T) {
	breaker := filepath.Join(t.TempDir(), "zzz-admin.conf")
	if err := os.WriteFile(breaker, []byte("[Unit]\nConditionPathExists=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := nodetest.HostWith(t, facts.Found{}, protocol.Spec{KeepDocker: true})
	for _, breaks := range []bool{false, true} {
		h.Systemd = host.Systemd{Run: nodetest.Says{"kubelet.service": map[bool]string{true: "DropInPaths=" + breaker + "\n"}[breaks]}}
		if _, err := kubeletStop(h).Record(t.Context(), node.Silent{}); (err != nil) != breaks {
			t.Errorf("breaks %t: %v", breaks, err)
		}
	}
}

// TestForeignBeforeCutover: a container that was started after prepare is found before the kubelet is stopped.
func TestForeignBeforeCutover(t *testing.T) {
	pod, db := nodetest.Container{Name: "k8s_web", Kind: "container"}, nodetest.Container{Name: "db"}
	for _, test := range []struct {
		name       string
		containers []nodetest.Container
		keep       bool
		want       string
	}{
		{"pods only", []nodetest.Container{pod}, false, ""},
		{"one appeared", []nodetest.Container{pod, db}, false, "1 container(s) that Kubernetes does not manage: db"},
		{"Docker is kept", []nodetest.Container{pod, db}, true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var containers []*nodetest.Container
			for i := range test.containers {
				containers = append(containers, &test.containers[i])
			}
			d := nodetest.StartDocker(t, containers...)
			h := nodetest.HostWith(t, facts.Found{DockerSocket: "unix://" + d.Socket}, protocol.Spec{KeepDocker: test.keep})
			h.Systemd = nodetest.NewUnits(t).Systemd
			_, err := List(h)[protocol.PhaseCutover][0].Record(t.Context(), node.Silent{})
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Fatalf("%v, want %q", err, test.want)
			}
			var hint interface{ Hint() string }
			if err != nil && (!errors.As(err, &hint) || !strings.Contains(hint.Hint(), "--keep-docker")) {
				t.Errorf("%v has no hint", err)
			}
		})
	}
}
