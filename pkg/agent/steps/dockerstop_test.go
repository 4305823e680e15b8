package steps

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
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

func TestDockerThere(t *testing.T) {
	dir := t.TempDir()
	program, root := filepath.Join(dir, "dockerd"), filepath.Join(dir, "docker")
	for _, test := range []struct{ name, load, program, root, want string }{
		{"all there", "loaded", program, root, ""},
		{"the package was removed", "not-found", program, root, "docker.service is not there any more"},
		{"the unit was left", "loaded", program + ".gone", root, "dockerd.gone, which docker.service starts, is not there any more"},
		{"the data was removed", "loaded", program, root + ".gone", "docker.gone is not there any more"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := os.MkdirAll(root, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(program, nil, 0o700); err != nil {
				t.Fatal(err)
			}
			units := fakeUnits{
				"docker.service": "LoadState=" + test.load + "\nExecStart={ path=" + test.program + " ; argv[]=" + test.program + " -H fd:// ; ignore_errors=no }\n",
				"docker.socket":  "LoadState=loaded\nExecStart=\n",
			}
			h := nodetest.HostWith(t, facts.Found{Facts: protocol.Facts{DockerRoot: test.root}}, protocol.Spec{})
			h.Systemd = host.Systemd{Run: units, Dir: t.TempDir()}
			err := dockerThere(t.Context(), h, []host.UnitState{{Name: "docker.socket"}, {Name: "docker.service"}})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// TestDockerStopFiles: what is planned is what Hold and RemoveLinks do.
func TestDockerStopFiles(t *testing.T) {
	dir := t.TempDir()
	wants := filepath.Join(dir, "multi-user.target.wants")
	if err := os.Mkdir(wants, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/lib/systemd/system/docker.service", filepath.Join(wants, "docker.service")); err != nil {
		t.Fatal(err)
	}
	systemd := host.Systemd{Dir: dir, Run: nodetest.Says{
		"docker.service":     "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\n",
		"docker.socket":      "LoadState=loaded\nUnitFileState=disabled\nActiveState=active\n",
		"cri-docker.service": "LoadState=not-found\n",
	}}
	h := &node.Host{Systemd: systemd}
	planned, err := dockerStop(h).(step[[]host.UnitState]).PlanFiles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, file := range planned {
		action := "create"
		if file.New == nil {
			action = "remove"
		}
		got = append(got, action+" "+strings.TrimPrefix(file.Path, dir)+" "+string(file.Old))
	}
	want := []string{"create /docker.socket.d/zz-kubectl-runtime.conf ", "create /docker.service.d/zz-kubectl-runtime.conf ", "remove /multi-user.target.wants/docker.service /lib/systemd/system/docker.service"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if err := systemd.Hold(t.Context(), desired.HoldDocker, "docker.socket", "docker.service"); err != nil {
		t.Fatal(err)
	}
	for _, file := range planned[:2] {
		if now, err := os.ReadFile(file.Path); err != nil || string(now) != string(file.New) {
			t.Errorf("%s: %q, %v", file.Path, now, err)
		}
	}
	if again, err := dockerStop(h).(step[[]host.UnitState]).PlanFiles(t.Context()); err != nil || !again[0].Unchanged() {
		t.Errorf("%+v, %v", again, err)
	}
	h.Spec.KeepDocker = true
	if kept, err := dockerStop(h).(step[[]host.UnitState]).PlanFiles(t.Context()); err != nil || len(kept) != 0 {
		t.Errorf("with --keep-docker: %+v, %v", kept, err)
	}
}
