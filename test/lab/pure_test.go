package lab

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestCgroupDirs(t *testing.T) {
	const hybrid = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`
	const unified = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
	for _, test := range []struct {
		name, mounts, own string
		want              []string
	}{
		{"hybrid", hybrid, "4:memory:/shells/1\n2:cpu,cpuacct:/\n9:name=systemd:/\n0::/\n", []string{
			"/sys/fs/cgroup/cpu,cpuacct/n", "/sys/fs/cgroup/memory/shells/1/n", "/sys/fs/cgroup/systemd/n", "/sys/fs/cgroup/unified/n",
		}},
		{"v2 alone", unified, "0::/user.slice/session-1.scope\n", []string{"/sys/fs/cgroup/n"}},
		{"none", "31 23 0:28 / / rw - ext4 /dev/vda rw\n", "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := cgroupDirs(test.mounts, test.own, "n"); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestParseStat(t *testing.T) {
	line := "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2\n"
	got, err := parseStat(line)
	if want := (stat{state: "S", parent: 7, start: "98765"}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "42 (a) S", "42 a S 7"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestProcessAlive(t *testing.T) {
	self := processOf("self", os.Getpid())
	if !self.alive() {
		t.Error("this process is not alive")
	}
	self.Start += "1" // the PID of one that ended, in use again
	if self.alive() {
		t.Error("a process that started at another time is taken for the same")
	}
	if (process{}).alive() {
		t.Error("no process is alive")
	}
}

func TestNotReady(t *testing.T) {
	const ready = `{"conditions":[{"type":"MemoryPressure","status":"False"},{"type":"Ready","status":"True"}]}`
	const waiting = `{"conditions":[{"type":"Ready","status":"False"}]}`
	object := func(kind, name, status string) string {
		return `{"kind":"` + kind + `","metadata":{"name":"` + name + `"},"status":` + status + `}`
	}
	list := func(items ...string) []byte { return []byte(`{"items":[` + strings.Join(items, ",") + `]}`) }
	for _, test := range []struct {
		name string
		list []byte
		want []string
	}{
		{"ready", list(object("Node", "n", ready), object("Pod", "a", ready), object("Pod", "b", ready), object("Pod", "c", ready), object("Pod", "d", ready)), nil},
		{"pod waits", list(object("Node", "n", ready), object("Pod", "a", ready), object("Pod", "b", waiting), object("Pod", "c", `{}`), object("Pod", "d", ready)), []string{"b", "c"}},
		{"empty", list(), []string{"1 nodes to come", "4 pods to come"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := notReady(test.list, 1, 2)
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
	if _, err := notReady([]byte("{"), 1, 1); err == nil {
		t.Error("a torn listing gives no error")
	}
}

func TestSysResourceIn(t *testing.T) {
	for status, want := range map[string]bool{
		"CapEff:\t000001fffeffffff\nCapBnd:\t000001fffeffffff\n": false,
		"CapEff:\t000001fffeffffff\nCapBnd:\t000001ffffffffff\n": true,
		"Name:\tx\n": true,
	} {
		if got := sysResourceIn(status); got != want {
			t.Errorf("%q: got %t", status, got)
		}
	}
}

func TestValidate(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("without root the first check fails")
	}
	for _, o := range []Options{
		{CgroupDriver: "none"},
		{CgroupDriver: "systemd", Nodes: 101},
		{CgroupDriver: "systemd", FileSystem: "vfat"},
		{CgroupDriver: "systemd", Overlay: "/no/such"},
		{CgroupDriver: "systemd", Nodes: 2, Overlays: map[string]string{"node-3": t.TempDir()}},
		{CgroupDriver: "systemd", Nodes: 2, Overlays: map[string]string{"node-01": t.TempDir()}},
		{CgroupDriver: "systemd", Nodes: 2, Overlays: map[string]string{"node-2": "/no/such"}},
	} {
		if o.FileSystem == "" {
			o.FileSystem = "ext4"
		}
		if err := o.validate(); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
	if err := (Options{CgroupDriver: "cgroupfs", FileSystem: "xfs", Nodes: 2, Overlay: t.TempDir(), Overlays: map[string]string{"node-2": t.TempDir()}}).validate(); err != nil {
		t.Error(err)
	}
	if _, err := profileNamed("podman"); err == nil || !strings.Contains(err.Error(), CRIDockerd) {
		t.Errorf("unknown profile: %v", err)
	}
}

// labFor is a lab of two nodes whose roots are empty folders.
func labFor(t *testing.T, profile, driver string) *Lab {
	t.Helper()
	p, err := profileNamed(profile)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := newPKI(filepath.Join(t.TempDir(), "pki"))
	if err != nil {
		t.Fatal(err)
	}
	nodes := t.TempDir()
	return newLab(&cluster{profile: p, pki: keys, state: &state{Driver: driver, Nodes: []*node{nodeNumbered(1, nodes), nodeNumbered(2, nodes)}}})
}

func TestNodeFiles(t *testing.T) {
	for _, test := range []struct {
		profile, flags, endpoint string
		has, hasNot              []string
	}{
		{
			Dockershim, `KUBELET_KUBEADM_ARGS="--network-plugin=cni --pod-infra-container-image=registry.k8s.io/pause:3.6"` + "\n", "",
			[]string{"etc/systemd/system/kubelet.service.d/10-kubeadm.conf"},
			[]string{"var/lib/kubelet/instance-config.yaml", "usr/lib/systemd/system/cri-docker.service"},
		},
		{
			CRIDockerd, `KUBELET_KUBEADM_ARGS=""` + "\n", "unix:///run/cri-dockerd.sock",
			[]string{"usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf", "var/lib/kubelet/instance-config.yaml", "usr/lib/systemd/system/cri-docker.socket"},
			[]string{"etc/systemd/system/kubelet.service.d"},
		},
	} {
		t.Run(test.profile, func(t *testing.T) {
			l := labFor(t, test.profile, "cgroupfs")
			n := l.state.Nodes[0]
			if err := l.nodeFiles(n); err != nil {
				t.Fatal(err)
			}
			read := func(path string) string {
				data, err := os.ReadFile(filepath.Join(n.Root, path))
				if err != nil {
					t.Fatal(err)
				}
				return string(data)
			}
			for _, path := range test.has {
				read(path)
			}
			for _, path := range test.hasNot {
				if _, err := os.Stat(filepath.Join(n.Root, path)); err == nil {
					t.Errorf("%s is there", path)
				}
			}
			if got := read("var/lib/kubelet/kubeadm-flags.env"); got != test.flags {
				t.Errorf("flags: %q", got)
			}
			checkKubeletConfig(t, read("var/lib/kubelet/config.yaml"), test.endpoint)
			var daemon map[string]any
			if err := json.Unmarshal([]byte(read("etc/docker/daemon.json")), &daemon); err != nil {
				t.Fatal(err)
			}
			if got := daemon["exec-opts"]; !reflect.DeepEqual(got, []any{"native.cgroupdriver=cgroupfs"}) {
				t.Errorf("exec-opts: %v", got)
			}
			if script := read("usr/lib/lab/network"); strings.Contains(script, "ip route replace "+n.PodCIDR) || !strings.Contains(script, "ip route replace 10.244.2.0/24 via 10.88.0.12\n") {
				t.Errorf("routes:\n%s", script)
			}
		})
	}
}

func checkKubeletConfig(t *testing.T, text, endpoint string) {
	t.Helper()
	var config struct {
		CgroupDriver             string
		ContainerRuntimeEndpoint string
		FailCgroupV1             *bool
	}
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		t.Fatal(err)
	}
	// 1.23 knows neither field, and 1.35 and later refuse cgroup v1 without the second.
	if config.CgroupDriver != "cgroupfs" || config.ContainerRuntimeEndpoint != endpoint || (config.FailCgroupV1 != nil) != (endpoint != "") {
		t.Errorf("kubelet configuration: %+v", config)
	}
}

func TestRuncWrapper(t *testing.T) {
	wrapper, err := render("runc-wrapper", nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "runc")
	// The real runc is replaced by echo: what counts is what the wrapper leaves in the files, and that it passes its arguments on.
	if err := os.WriteFile(script, []byte(strings.Replace(string(wrapper), "exec /usr/sbin/runc", "exec echo", 1)), 0o700); err != nil {
		t.Fatal(err)
	}
	const before = `{"process":{"oomScoreAdj":-998,"capabilities":{"bounding":["CAP_SYS_RESOURCE","CAP_KILL"],"effective":["CAP_KILL","CAP_SYS_RESOURCE"],"permitted":["CAP_SYS_RESOURCE"]}}}`
	const after = `{"process":{"oomScoreAdj":0,"capabilities":{"bounding":["CAP_KILL"],"effective":["CAP_KILL"],"permitted":[]}}}`
	for _, test := range []struct {
		file string
		args []string
	}{
		{"config.json", []string{"--root", "/r", "create", "--bundle", dir, "--pid-file", "p", "id"}},
		{"config.json", []string{"run", "--bundle=" + dir, "id"}},
		{"process.json", []string{"exec", "--process", filepath.Join(dir, "process.json"), "id"}},
	} {
		path := filepath.Join(dir, test.file)
		if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(script, test.args...).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != strings.Join(test.args, " ") {
			t.Errorf("%q: %v, %s", test.args, err, out)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != after {
			t.Errorf("%q: %v\n%s", test.args, err, got)
		}
	}
}

func TestRestoreSysctls(t *testing.T) {
	path := filepath.Join(t.TempDir(), "panic")
	if err := os.WriteFile(path, []byte("10\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := restoreSysctls(map[string]string{path: "1"}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "1" {
		t.Errorf("got %q, %v", got, err)
	}
	if len(readSysctls([]string{"kernel.panic", "fs.protected_*", "no.such"})) < 3 {
		t.Error("settings that exist were not read")
	}
}

func TestManifests(t *testing.T) {
	for _, name := range []string{"kube-proxy.yaml", "coredns.yaml", "cni-agent.yaml"} {
		text, err := manifest(name, "1.37.2")
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range strings.Split(string(text), "\n---\n") {
			var object struct{ APIVersion, Kind string }
			if err := yaml.UnmarshalStrict([]byte(doc), &map[string]any{}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := yaml.Unmarshal([]byte(doc), &object); err != nil || object.Kind == "" || object.APIVersion == "" {
				t.Errorf("%s: %+v, %v", name, object, err)
			}
		}
	}
}

// TestNetworkConfig: the network that needs an agent is the other one with one more plugin.
func TestNetworkConfig(t *testing.T) {
	for agent, want := range map[bool]string{false: "bridge portmap", true: "bridge cni-needs-agent portmap"} {
		text, err := render("10-lab.conflist", map[string]any{"Node": node{PodCIDR: "10.244.1.0/24"}, "AgentCNI": agent})
		if err != nil {
			t.Fatal(err)
		}
		var conf struct{ Plugins []struct{ Type string } }
		if err := json.Unmarshal(text, &conf); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		var types []string
		for _, plugin := range conf.Plugins {
			types = append(types, plugin.Type)
		}
		if got := strings.Join(types, " "); got != want {
			t.Errorf("agent %t: %s", agent, got)
		}
	}
}

func TestAlive(t *testing.T) {
	own := processOf("test", os.Getpid())
	reused := process{Name: "reused", PID: own.PID, Start: "1"} // another process has its PID
	for _, test := range []struct {
		name  string
		state state
		want  bool
	}{
		{"nothing was started", state{Nodes: []*node{{Name: "node-1"}}}, false},
		{"all have ended", state{Processes: []process{reused}, Nodes: []*node{{Nspawn: reused, Init: reused}}}, false},
		{"a component runs", state{Processes: []process{reused, own}}, true},
		{"a node runs", state{Processes: []process{reused}, Nodes: []*node{{Nspawn: reused}, {Nspawn: own}}}, true},
	} {
		if got := test.state.alive(); got != test.want {
			t.Errorf("%s: alive %t", test.name, got)
		}
	}
}
