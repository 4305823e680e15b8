package steps

import (
	"context"
	"encoding/json"
	"errors"
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

// TestDockerStop: nothing starts Docker any more, whoever asks for it, until the step is undone; then all is as it was.
func TestDockerStop(t *testing.T) {
	for _, keep := range []bool{false, true} {
		u := nodetest.NewUnits(t, "docker.socket", "docker.service", "cri-docker.socket", "cri-docker.service", node.ContainerdUnit)
		h := nodetest.HostWith(t, facts.Found{Facts: protocol.Facts{DockerRoot: t.TempDir()}}, protocol.Spec{KeepDocker: keep})
		h.Systemd = u.Systemd
		s := dockerStop(h)
		ctx := context.Background()
		memo, err := s.Record(ctx, node.Silent{})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(memo)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.Apply(ctx, raw, node.Silent{}); err != nil {
				t.Fatal(err)
			}
		}
		for unit := range u.Active {
			stays := unit == node.ContainerdUnit || keep && strings.HasPrefix(unit, "docker.")
			_ = u.Systemd.Start(ctx, unit) // as a kubelet that wants it, or a boot, would
			if u.Active[unit] != stays || u.Enabled(unit) != stays || u.Held(unit) == stays {
				t.Errorf("keep %t: %s: active %t, enabled %t, held %t", keep, unit, u.Active[unit], u.Enabled(unit), u.Held(unit))
			}
		}
		for range 2 {
			if err := s.Revert(ctx, raw, node.Silent{}); err != nil {
				t.Fatal(err)
			}
		}
		for unit := range u.Active {
			if !u.Active[unit] || !u.Enabled(unit) || u.Held(unit) {
				t.Errorf("keep %t: after the undo, %s: active %t, enabled %t, held %t", keep, unit, u.Active[unit], u.Enabled(unit), u.Held(unit))
			}
		}
	}
}

// TestDockerStopAfterReboot: a node that lost its power before the step may not have started Docker again when its units are recorded. The way back
// starts it all the same.
func TestDockerStopAfterReboot(t *testing.T) {
	u := nodetest.NewUnits(t, "docker.service", "cri-docker.socket", "cri-docker.service", node.ContainerdUnit, kubelet.Unit)
	u.Active["cri-docker.socket"] = false
	h := nodetest.HostWith(t, facts.Found{Running: []string{"cri-docker.service", "docker.service"}}, protocol.Spec{})
	h.Systemd = u.Systemd
	clear(u.Active)
	for _, unit := range []string{"docker.service", "cri-docker.socket", "cri-docker.service", node.ContainerdUnit} {
		u.Active[unit] = unit == node.ContainerdUnit // systemd is about to start the others
	}
	s := dockerStop(h)
	memo, err := s.Record(t.Context(), node.Silent{})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(memo)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Apply(t.Context(), raw, node.Silent{}), s.Revert(t.Context(), raw, node.Silent{})); err != nil {
		t.Fatal(err)
	}
	for unit, want := range map[string]bool{"docker.service": true, "cri-docker.service": true, "cri-docker.socket": false} {
		if u.Active[unit] != want {
			t.Errorf("%s: active %t, want %t", unit, u.Active[unit], want)
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
