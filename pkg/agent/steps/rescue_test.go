package steps

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// stopped answers like systemd with Docker, cri-dockerd and containerd there but down, and notes what it has to start.
type stopped struct {
	file    string // of each unit
	started []string
}

func (s *stopped) Run(_ context.Context, _ string, args ...string) (string, error) {
	unit := args[len(args)-1]
	switch args[0] {
	case "show":
		if strings.HasPrefix(unit, "cri-dockerd") {
			return "LoadState=not-found\n", nil
		}
		return "LoadState=loaded\nUnitFileState=disabled\nActiveState=inactive\nFragmentPath=" + s.file + "\n", nil
	case "start":
		s.started = append(s.started, unit)
	}
	return "", nil
}

func TestRescue(t *testing.T) {
	docker := []string{"docker.socket", "docker.service", "cri-docker.socket", "cri-docker.service"}
	for _, test := range []struct {
		name, endpoint string
		fail           error
		start, enable  []string
	}{
		{"dockershim", "dockershim", nil, docker, docker[:2]},
		{"cri-dockerd", "unix:///run/cri-dockerd.sock", nil, docker, docker[:2]},
		{"containerd", "unix:///run/containerd/containerd.sock", nil, []string{"containerd.service"}, nil},
		{"unknown", "", errors.New("no ExecStart="), append([]string{"containerd.service"}, docker...), docker[:2]},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := context.Background()
			fake := &stopped{file: filepath.Join(t.TempDir(), "unit")}
			if err := os.WriteFile(fake.file, []byte("[Install]\nWantedBy=sockets.target\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			systemd := host.Systemd{Run: fake, Dir: t.TempDir()}
			hold := filepath.Join(t.TempDir(), "hold")
			endpoint := func() (string, error) { return test.endpoint, test.fail }
			if did, err := rescue(ctx, systemd, hold, endpoint); err != nil || len(did)+len(fake.started) > 0 {
				t.Fatalf("without a hold: %v %v", did, err)
			}
			if err := os.WriteFile(hold, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := systemd.Hold(ctx, "test", "docker.socket", "docker.service", "kubelet.service"); err != nil {
				t.Fatal(err)
			}
			did, err := rescue(ctx, systemd, hold, endpoint)
			if err != nil || len(did) < 2 {
				t.Fatal(did, err)
			}
			if want := append(test.start, "kubelet.service"); !slices.Equal(fake.started, want) {
				t.Errorf("started %q", fake.started)
			}
			enabled, err := filepath.Glob(filepath.Join(systemd.Dir, "sockets.target.wants", "*"))
			if err != nil || len(enabled) != len(test.enable) {
				t.Errorf("enabled %q: %v", enabled, err)
			}
			for _, unit := range test.enable {
				if host.Absent(filepath.Join(systemd.Dir, "sockets.target.wants", unit)) {
					t.Errorf("%s is not enabled", unit)
				}
			}
			if !host.Absent(hold) || !host.Absent(systemd.HoldPath("kubelet.service")) {
				t.Error("the kubelet is still held")
			}
			if host.Absent(systemd.HoldPath("docker.service")) != (len(test.enable) > 0) {
				t.Error("Docker is held on Docker, or free on containerd")
			}
		})
	}
}
