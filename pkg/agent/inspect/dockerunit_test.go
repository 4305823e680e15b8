package inspect

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// TestExpectService: a Docker that docker.service does not run would go on after that unit was stopped.
func TestExpectService(t *testing.T) {
	f := nodetest.NewProc(t)
	f.Add("100", 1, "0::/system.slice/docker.service\n", "host", "/usr/bin/dockerd", "-H", "fd://")
	f.Add("200", 1, "0::/user.slice\n", "host", "dockerd", "--debug")
	f.Add("300", 1, "0::/system.slice/snap.docker.dockerd.service\n", "host", "dockerd", "--snap")
	f.Add("400", 1, "12:pids:/\n1:name=systemd:/system.slice/docker.service/x\n", "host", "dockerd")
	runs := service{unit: "docker.service", load: "loaded", active: "active", pid: 100, cgroup: "/system.slice/docker.service"}
	down := service{unit: "docker.service", load: "loaded", active: "inactive"}
	masked := service{unit: "docker.service", load: "masked", active: "inactive"}
	for _, test := range []struct {
		name     string
		service  service
		listener int
		want     string
	}{
		{"its own socket", runs, 100, ""},
		{"systemd's socket", runs, 1, ""},
		{"behind a script", runs, 400, ""},
		{"by hand", down, 200, "process 200 (dockerd --debug) listens there, and docker.service is inactive"},
		{"a snap's", service{unit: "docker.service", load: "not-found", active: "inactive"}, 300, "process 300 (dockerd --snap) listens there, and docker.service is not-found"},
		{"masked", masked, 200, "docker.service is masked"},
		{"two of them", runs, 200, "process 200 (dockerd --debug) listens there, and the one of docker.service is process 100"},
		{"another unit's socket", down, 1, "docker.service is inactive"},
		{"in another PID namespace", runs, 0, "process 0 listens there"},
	} {
		err := expectService(f.Dir, test.service, "unix:///var/run/docker.sock", test.listener)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
		var hint interface{ Hint() string }
		if err != nil && (!errors.As(err, &hint) || hint.Hint() == "") {
			t.Errorf("%s: no hint", test.name)
		}
	}
}

// TestDaemonOf: the daemon is who listens, whatever its program is called and whoever started it.
func TestDaemonOf(t *testing.T) {
	f := nodetest.NewProc(t)
	f.Add("100", 1, "0::/system.slice/docker.service\n", "host", "/bin/sh", "/usr/local/bin/start-docker")
	f.Add("101", 100, "0::/system.slice/docker.service\n", "host", "/usr/bin/dockerd-current", "--data-root=/data")
	for _, test := range []struct {
		name      string
		main      int
		listener  int
		want, err string
	}{
		{"its own socket", 101, 101, "/usr/bin/dockerd-current", ""},
		{"systemd's socket", 101, 1, "/usr/bin/dockerd-current", ""},
		{"behind a script", 100, 101, "/usr/bin/dockerd-current", ""},
		{"down", 0, 1, "", "find the process of docker.service: it is inactive"},
		{"ended a moment ago", 102, 1, "", "find the process of docker.service: read process 102"},
	} {
		daemon, err := daemonOf(f.Dir, service{unit: node.DockerUnit, active: "inactive", pid: test.main}, test.listener)
		if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) || err == nil && daemon.Args[0] != test.want {
			t.Errorf("%s: %+v, %v", test.name, daemon, err)
		}
	}
	i := &inspection{findDaemonErr: errors.New("find it: gone")}
	if err := checkDockerConfig(t.Context(), i); err == nil || !strings.Contains(err.Error(), "how Docker was started cannot be seen: find it: gone") {
		t.Errorf("without a daemon: %v", err)
	}
}

func TestListenerOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if pid, err := listenerOf(t.Context(), path); err != nil || pid != os.Getpid() {
		t.Errorf("%d, %v; this process is %d", pid, err, os.Getpid())
	}
	_ = listener.Close()
	if _, err := listenerOf(t.Context(), path); err == nil {
		t.Error("no error where nobody listens")
	}
}
