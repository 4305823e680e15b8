package steps

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
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
	if err := i.lookAtDockerConfig(t.Context()); err == nil || !strings.Contains(err.Error(), "how Docker was started cannot be seen: find it: gone") {
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

func TestOtherProcess(t *testing.T) {
	for _, test := range []struct {
		name             string
		pid              string
		ppid             int
		namespace, other string
		want             bool
	}{
		{"a second one", "20", 1, "host", "/usr/local/bin/kubelet", true},
		{"a child that is about to be another program", "20", 10, "host", "/usr/bin/kubelet", false},
		{"a container's", "20", 1, "kind", "/usr/bin/kubelet", false},
		{"another program", "20", 1, "host", "/usr/bin/kubelet-helper", false},
	} {
		f := nodetest.NewProc(t)
		f.Add("10", 1, "0::/\n", "host", "/usr/bin/kubelet")
		f.Add(test.pid, test.ppid, "0::/\n", test.namespace, test.other)
		got, err := otherProcess(f.Dir, "kubelet", 10)
		if err != nil || (got != nil) != test.want || got != nil && got.PID != 20 {
			t.Errorf("%s: %+v, %v", test.name, got, err)
		}
	}
}

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
		err := i.lookAtUnits(t.Context())
		if (err == nil) != (test.refused == "") || err != nil && !strings.Contains(err.Error(), test.refused) {
			t.Errorf("%+v: refused with %v", test, err)
		}
		if warnings := strings.Join(i.Facts.Warnings, "\n"); (warnings == "") != (test.warned == "") || !strings.Contains(warnings, test.warned) {
			t.Errorf("%+v: warnings %q", test, warnings)
		}
	}
}

// TestLookAtDependents: what systemd stops with Docker's units is told of, and the kubelet must not be among it.
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
		err := i.lookAtUnits(t.Context())
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

// TestHoldable: a drop-in that takes the hold away is found before the drain, and once more before the kubelet is stopped.
func TestHoldable(t *testing.T) {
	breaker := filepath.Join(t.TempDir(), "zzz-admin.conf")
	if err := os.WriteFile(breaker, []byte("[Unit]\nConditionPathExists=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, unit := range []string{"kubelet.service", "docker.service", "cri-docker.socket"} {
		h := &node.Host{Systemd: host.Systemd{Run: nodetest.Says{unit: "LoadState=loaded\nDropInPaths=" + breaker + "\n"}}}
		if err := (&inspection{h: h}).lookAtHolds(t.Context()); err == nil || !strings.Contains(err.Error(), breaker+" resets the conditions of "+unit) {
			t.Errorf("%s: %v", unit, err)
		}
	}
	h := nodetest.HostWith(t, facts.Found{}, protocol.Spec{KeepDocker: true})
	for _, breaks := range []bool{false, true} {
		h.Systemd = host.Systemd{Run: nodetest.Says{"kubelet.service": map[bool]string{true: "DropInPaths=" + breaker + "\n"}[breaks]}}
		if _, err := kubeletStop(h).Record(t.Context(), node.Silent{}); (err != nil) != breaks {
			t.Errorf("breaks %t: %v", breaks, err)
		}
	}
}
