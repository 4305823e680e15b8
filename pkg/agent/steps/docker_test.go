package steps

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// quiet is a Report that nobody reads.
type quiet struct{}

func (quiet) Progress(string, int64, int64, string) {}
func (quiet) Info(string)                           {}
func (quiet) Warn(string)                           {}
func (quiet) Facts(protocol.Facts)                  {}

// units is a systemd that skips the start of a unit that is held.
type units struct {
	systemd host.Systemd
	active  map[string]bool
}

func newUnits(t *testing.T, names ...string) *units {
	t.Helper()
	u := &units{active: map[string]bool{}}
	u.systemd = host.Systemd{Run: u, Dir: t.TempDir()}
	for _, name := range names {
		u.active[name] = true
		if err := u.systemd.MakeLinks(map[string]string{u.link(name): "/lib/systemd/system/" + name}); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

func (u *units) link(unit string) string {
	return filepath.Join(u.systemd.Dir, "multi-user.target.wants", unit)
}

func (u *units) enabled(unit string) bool { return !host.Absent(u.link(unit)) }

func (u *units) held(unit string) bool { return !host.Absent(u.systemd.HoldPath(unit)) }

func (u *units) Run(_ context.Context, _ string, args ...string) (string, error) {
	named := args[slices.Index(args, "--")+1:]
	unit := args[len(args)-1]
	_, exists := u.active[unit]
	switch args[0] {
	case "show":
		if !exists {
			return "LoadState=not-found\nUnitFileState=\nActiveState=inactive\n", nil
		}
		file, active := "disabled", "inactive"
		if u.enabled(unit) {
			file = "enabled"
		}
		if u.active[unit] {
			active = "active"
		}
		return "LoadState=loaded\nUnitFileState=" + file + "\nActiveState=" + active + "\n", nil
	case "start":
		if !exists {
			return "", errors.New("not found")
		}
		u.active[unit] = !u.held(unit)
	case "stop":
		for _, unit := range named {
			u.active[unit] = false
		}
	}
	return "", nil
}

// TestDockerStop: nothing starts Docker any more, whoever asks for it, until the step is undone; then all is as it was.
func TestDockerStop(t *testing.T) {
	for _, keep := range []bool{false, true} {
		u := newUnits(t, "docker.socket", "docker.service", "cri-docker.socket", "cri-docker.service", containerdUnit)
		h := hostWith(t, Found{Facts: protocol.Facts{DockerRoot: t.TempDir()}}, protocol.Spec{KeepDocker: keep})
		h.Systemd = u.systemd
		s := dockerStop(h)
		ctx := context.Background()
		memo, err := s.Record(ctx, quiet{})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(memo)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.Apply(ctx, raw, quiet{}); err != nil {
				t.Fatal(err)
			}
		}
		for unit := range u.active {
			stays := unit == containerdUnit || keep && strings.HasPrefix(unit, "docker.")
			_ = u.systemd.Start(ctx, unit) // as a kubelet that wants it, or a boot, would
			if u.active[unit] != stays || u.enabled(unit) != stays || u.held(unit) == stays {
				t.Errorf("keep %t: %s: active %t, enabled %t, held %t", keep, unit, u.active[unit], u.enabled(unit), u.held(unit))
			}
		}
		for range 2 {
			if err := s.Revert(ctx, raw, quiet{}); err != nil {
				t.Fatal(err)
			}
		}
		for unit := range u.active {
			if !u.active[unit] || !u.enabled(unit) || u.held(unit) {
				t.Errorf("keep %t: after the undo, %s: active %t, enabled %t, held %t", keep, unit, u.active[unit], u.enabled(unit), u.held(unit))
			}
		}
	}
}

// TestDockerStopAfterReboot: a node that lost its power before the step may not have started Docker again when its units are recorded. The way back
// starts it all the same.
func TestDockerStopAfterReboot(t *testing.T) {
	u := newUnits(t, "docker.service", "cri-docker.socket", "cri-docker.service", containerdUnit, kubelet.Unit)
	u.active["cri-docker.socket"] = false
	i := &inspection{h: &Host{Systemd: u.systemd}, report: quiet{}}
	if err := i.lookAtUnits(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := hostWith(t, i.Found, protocol.Spec{})
	h.Systemd = u.systemd
	clear(u.active)
	for _, unit := range []string{"docker.service", "cri-docker.socket", "cri-docker.service", containerdUnit} {
		u.active[unit] = unit == containerdUnit // systemd is about to start the others
	}
	s := dockerStop(h)
	memo, err := s.Record(t.Context(), quiet{})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(memo)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Apply(t.Context(), raw, quiet{}), s.Revert(t.Context(), raw, quiet{})); err != nil {
		t.Fatal(err)
	}
	for unit, want := range map[string]bool{"docker.service": true, "cri-docker.service": true, "cri-docker.socket": false} {
		if u.active[unit] != want {
			t.Errorf("%s: active %t, want %t", unit, u.active[unit], want)
		}
	}
}

// TestForeignBeforeCutover: a container that was started after prepare is found before the kubelet is stopped.
func TestForeignBeforeCutover(t *testing.T) {
	pod, db := fakeContainer{name: "k8s_web", kind: "container"}, fakeContainer{name: "db"}
	for _, test := range []struct {
		name       string
		containers []fakeContainer
		keep       bool
		want       string
	}{
		{"pods only", []fakeContainer{pod}, false, ""},
		{"one appeared", []fakeContainer{pod, db}, false, "1 container(s) that Kubernetes does not manage: db"},
		{"Docker is kept", []fakeContainer{pod, db}, true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var containers []*fakeContainer
			for i := range test.containers {
				containers = append(containers, &test.containers[i])
			}
			d := startFakeDocker(t, containers...)
			h := hostWith(t, Found{DockerSocket: "unix://" + d.socket}, protocol.Spec{KeepDocker: test.keep})
			h.Systemd = newUnits(t).systemd
			_, err := List(h)[protocol.PhaseCutover][0].Record(t.Context(), quiet{})
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

// TestLookForForeign: what does not run at this moment ends with Docker, too.
func TestLookForForeign(t *testing.T) {
	pod, stopped := docker.Container{Name: "k8s_web", Labels: map[string]string{"io.kubernetes.docker.type": "container"}}, docker.Container{Name: "backup"}
	db := docker.Container{Name: "db", Running: true}
	many := []docker.Container{pod}
	for n := range 12 {
		many = append(many, docker.Container{Name: string(rune('a' + n))})
	}
	for _, test := range []struct {
		name            string
		containers      []docker.Container
		info            docker.Info
		keep            bool
		refused, warned string
	}{
		{name: "pods only", containers: []docker.Container{pod}},
		{name: "one that runs", containers: []docker.Container{pod, db, stopped}, refused: "1 container(s) that Kubernetes does not manage: db"},
		{name: "one that does not", containers: []docker.Container{pod, stopped}, warned: "1 container(s) that Kubernetes does not manage and that do not run now"},
		{name: "many that do not", containers: many, warned: "12 container(s)"},
		{name: "a manager", info: docker.Info{Swarm: true, SwarmManager: true}, refused: "a manager of a Docker Swarm"},
		{name: "a worker", info: docker.Info{Swarm: true}, warned: "a member of a Docker Swarm"},
		{name: "Docker is kept", containers: []docker.Container{db, stopped}, info: docker.Info{Swarm: true, SwarmManager: true}, keep: true},
	} {
		i := &inspection{h: &Host{Spec: protocol.Spec{KeepDocker: test.keep}}, containers: test.containers, info: test.info}
		err := errors.Join(i.lookForForeign(t.Context()), i.lookForSwarm(t.Context()))
		if (err == nil) != (test.refused == "") || err != nil && !strings.Contains(err.Error(), test.refused) {
			t.Errorf("%s: refused with %v", test.name, err)
		}
		warnings := strings.Join(i.Facts.Warnings, "\n")
		if (warnings == "") != (test.warned == "") || !strings.Contains(warnings, test.warned) || strings.Contains(warnings, "k8s_web") || len(warnings) > 300 {
			t.Errorf("%s: warnings %q", test.name, warnings)
		}
	}
}

// TestDockerPods: the step is done only when Docker itself lists none of its pods' containers as running any more.
func TestDockerPods(t *testing.T) {
	type container = fakeContainer
	web, pause, db := container{name: "web", kind: "container"}, container{name: "pause", kind: "podsandbox"}, container{name: "db"}
	stuck, undead := container{name: "etcd", kind: "container", survives: true}, container{name: "etcd", kind: "container", immortal: true}
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
			var containers []*fakeContainer
			for i := range test.containers {
				containers = append(containers, &test.containers[i])
			}
			d := startFakeDocker(t, containers...)
			found := Found{DockerSocket: "unix://" + d.socket, CNIConfDir: t.TempDir(), CNIBinDir: t.TempDir()}
			found.Facts.OldEndpoint = kubelet.Dockershim
			if test.cri {
				runtime := startFakeCRI(t)
				runtime.fails[test.criFails] = true
				found.Facts.OldEndpoint = runtime.endpoint
			}
			h := hostWith(t, found, protocol.Spec{})
			h.Systemd = newUnits(t, "docker.service", "cri-docker.service").systemd
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			err := dockerPods(h).Apply(ctx, json.RawMessage("{}"), quiet{})
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
			var killed []string
			for _, c := range containers {
				if c.killed {
					killed = append(killed, c.name)
				}
				if foreign := c.kind == ""; foreign != c.up && !c.immortal || foreign && c.stopped {
					t.Errorf("%s runs: %t, was stopped: %t", c.name, c.up, c.stopped)
				}
			}
			if !slices.Equal(killed, test.killed) {
				t.Errorf("killed %q", killed)
			}
		})
	}
}
