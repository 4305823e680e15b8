package steps

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestDockerPods: the step is done only when Docker itself lists none of its pods' containers as running any more.
func TestDockerPods(t *testing.T) {
	type container = nodetest.Container
	web, pause, db := container{Name: "web", Kind: "container"}, container{Name: "pause", Kind: "podsandbox"}, container{Name: "db"}
	stuck, undead := container{Name: "etcd", Kind: "container", Survives: true}, container{Name: "etcd", Kind: "container", Immortal: true}
	for _, test := range []struct {
		name       string
		cri        bool
		criFails   string
		containers []container
		want       string
		killed     []string
	}{
		{"all stop", false, "", []container{web, pause, db}, "", nil},
		{"one outlives its stop", false, "", []container{web, stuck, pause, db}, "", []string{"etcd"}},
		{"one outlives even SIGKILL", false, "", []container{web, undead, pause}, "1 container(s) run even after SIGKILL: etcd", []string{"etcd"}},
		{"cri-dockerd does not know of one", true, "", []container{web, db}, "", []string{"web"}},
		{"cri-dockerd fails", true, "ListContainers", []container{web, stuck, db}, "", []string{"etcd"}},
		{"and Docker cannot end it", true, "ListContainers", []container{undead}, "after SIGKILL: etcd", []string{"etcd"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var containers []*nodetest.Container
			for i := range test.containers {
				containers = append(containers, &test.containers[i])
			}
			d := nodetest.StartDocker(t, containers...)
			found := facts.Found{DockerSocket: "unix://" + d.Socket, CNIConfDir: t.TempDir(), CNIBinDir: t.TempDir()}
			found.Facts.OldEndpoint = kubelet.Dockershim
			if test.cri {
				runtime := nodetest.StartCRI(t)
				runtime.Fails[test.criFails] = true
				found.Facts.OldEndpoint = runtime.Endpoint
			}
			h := nodetest.HostWith(t, found, protocol.Spec{})
			h.Systemd = nodetest.NewUnits(t, "docker.service", "cri-docker.service").Systemd
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			err := dockerPods(h).Apply(ctx, json.RawMessage("{}"), node.Silent{})
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
			var killed []string
			for _, c := range containers {
				if c.Killed {
					killed = append(killed, c.Name)
				}
				if foreign := c.Kind == ""; foreign != c.Up && !c.Immortal || foreign && c.Stopped {
					t.Errorf("%s runs: %t, was stopped: %t", c.Name, c.Up, c.Stopped)
				}
			}
			if !slices.Equal(killed, test.killed) {
				t.Errorf("killed %q", killed)
			}
		})
	}
}
