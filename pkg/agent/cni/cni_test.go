package cni

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

func write(t testing.TB, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func TestDetect(t *testing.T) {
	dir := t.TempDir()
	conf, bin := filepath.Join(dir, "net.d"), filepath.Join(dir, "bin")
	network, err := Detect(conf, bin)
	if err != nil || network.Name != "" || len(network.BinDirs) == 0 {
		t.Fatalf("without any configuration: %+v, %v", network, err)
	}
	write(t, filepath.Join(conf, "00-broken.conf"), "{", 0o600)
	write(t, filepath.Join(conf, "05-list-in-conf.conf"), `{"cniVersion":"0.3.1","name":"x","plugins":[{"type":"bridge"}]}`, 0o600)
	write(t, filepath.Join(conf, "06-ignored.txt"), `{"cniVersion":"0.3.1","name":"text","type":"bridge"}`, 0o600)
	write(t, filepath.Join(conf, "10-net.conflist"), `{"cniVersion":"0.3.1","name":"pods","plugins":[{"type":"frob","ipam":{"type":"frob-ipam"}},{"type":"frob-map"}]}`, 0o600)
	write(t, filepath.Join(conf, "20-other.conf"), `{"cniVersion":"0.3.1","name":"other","type":"bridge"}`, 0o600)
	write(t, filepath.Join(bin, "frob"), "", 0o755)
	write(t, filepath.Join(bin, "frob-ipam"), "", 0o644) // not executable
	network, err = Detect(conf, bin)
	if err != nil || network.Name != "pods" || network.File != filepath.Join(conf, "10-net.conflist") || network.BinDirs[0] != bin {
		t.Fatalf("got %+v, %v", network, err)
	}
	if diff := cmp.Diff([]string{"frob-ipam", "frob-map"}, network.Missing); diff != "" {
		t.Errorf("missing plugins -want +got\n%s", diff)
	}
}

func TestPickBinDirsPrefersTheCompleteOne(t *testing.T) {
	empty, full := t.TempDir(), t.TempDir()
	write(t, filepath.Join(full, "frob"), "", 0o755)
	old := defaultBinDirs
	defaultBinDirs = []string{filepath.Join(full, "gone"), full}
	t.Cleanup(func() { defaultBinDirs = old })
	dirs, missing := pickBinDirs(empty, []string{"frob"})
	if diff := cmp.Diff([]string{full, empty}, dirs); diff != "" || len(missing) != 0 {
		t.Errorf("missing %v; directories -want +got\n%s", missing, diff)
	}
	if dirs, _ := pickBinDirs(empty, nil); dirs[0] != empty {
		t.Errorf("the one asked for is not first: %v", dirs)
	}
}

// recorder is a plugin that keeps what it is called with.
const recorder = `#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME netns=$CNI_NETNS $CNI_ARGS" >> "$(dirname "$0")/calls"
cat >> "$(dirname "$0")/stdin"; echo >> "$(dirname "$0")/stdin"
[ ! -e "$(dirname "$0")/fail" ] || { cat "$(dirname "$0")/fail"; exit 1; }
`

func recorded(t *testing.T, conflist string) (Network, string) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "net.d/10.conflist"), conflist, 0o600)
	write(t, filepath.Join(dir, "bin/recorder"), recorder, 0o755)
	network, err := Detect(filepath.Join(dir, "net.d"), filepath.Join(dir, "bin"))
	if err != nil {
		t.Fatal(err)
	}
	network.CacheDir = filepath.Join(dir, "cache")
	return network, filepath.Join(dir, "bin")
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

const recorderList = `{"cniVersion":"0.3.1","name":"pods","plugins":[{"type":"recorder","capabilities":{"portMappings":true}}]}`

func TestDelPassesWhatDockershimDid(t *testing.T) {
	network, bin := recorded(t, recorderList)
	attachment := Attachment{
		ContainerID: "abc", Netns: "/proc/gone/ns/net", Namespace: "ns", Name: "pod", UID: "u",
		PortMappings: []PortMapping{{HostPort: 80, ContainerPort: 8080, Protocol: "tcp"}},
	}
	if err := network.Del(t.Context(), attachment); err != nil {
		t.Fatal(err)
	}
	want := "DEL abc eth0 netns= IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u\n"
	if diff := cmp.Diff(want, read(t, filepath.Join(bin, "calls"))); diff != "" {
		t.Errorf("call -want +got\n%s", diff)
	}
	if stdin := read(t, filepath.Join(bin, "stdin")); !strings.Contains(stdin, `"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp","hostIP":""}]`) {
		t.Errorf("no port mappings in %s", stdin)
	}
}

// The cache knows how the container was attached, also when the node's configuration is another one by now.
func TestDelUsesTheCache(t *testing.T) {
	network, bin := recorded(t, recorderList)
	list, err := libcni.NetworkConfFromBytes([]byte(strings.Replace(recorderList, "pods", "before", 1)))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(bin, "recorder"), recorder+`[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"0.3.1"}'; exit 0`+"\n", 0o755)
	for _, name := range []string{"before", loopback} {
		list.Name = name
		config := libcni.NewCNIConfigWithCacheDir(network.BinDirs, network.CacheDir, nil)
		if _, err := config.AddNetworkList(t.Context(), list, &libcni.RuntimeConf{
			ContainerID: "abc", NetNS: "/proc/self/ns/net", IfName: "eth0", Args: [][2]string{{"FROM", "cache"}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(bin, "calls")); err != nil {
		t.Fatal(err)
	}
	network.list = nil
	if err := network.Del(t.Context(), Attachment{ContainerID: "abc", Netns: "/proc/self/ns/net"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("DEL abc eth0 netns=/proc/self/ns/net FROM=cache\n", read(t, filepath.Join(bin, "calls"))); diff != "" {
		t.Errorf("calls -want +got\n%s", diff)
	}
	if err := network.Del(t.Context(), Attachment{ContainerID: "abc"}); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("once more, without a configuration: %v", err)
	}
}

func TestDelErrors(t *testing.T) {
	network, bin := recorded(t, recorderList)
	write(t, filepath.Join(bin, "fail"), `{"code":100,"msg":"the API is away"}`, 0o600)
	err := network.Del(t.Context(), Attachment{ContainerID: "abc", Namespace: "ns", Name: "pod"})
	if err == nil || !strings.Contains(err.Error(), "CNI DEL ns/pod (container abc)") || !strings.Contains(err.Error(), "the API is away") {
		t.Errorf("got %v", err)
	}
	write(t, filepath.Join(bin, "fail"), `{"code":100,"msg":"open /var/run/x: no such file or directory"}`, 0o600)
	if err := network.Del(t.Context(), Attachment{ContainerID: "abc"}); err != nil {
		t.Errorf("what is gone already: %v", err)
	}
	if err := network.Del(t.Context(), Attachment{}); err == nil {
		t.Error("a container without an ID is taken")
	}
}

// Real plugins: a network namespace joins a ptp network and is detached, with the namespace and without.
func TestDelReleasesTheLeaseOfARealNetwork(t *testing.T) {
	plugins := agenttest.CNIPlugins(t)
	for name, keep := range map[string]bool{"namespace there": true, "namespace gone": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "net.d/10.conflist"), `{"cniVersion":"0.3.1","name":"pods","plugins":[{"type":"ptp",
				"ipam":{"type":"host-local","subnet":"10.253.92.0/24","dataDir":"`+dir+`/leases"}}]}`, 0o600)
			network, err := Detect(filepath.Join(dir, "net.d"), plugins)
			if err != nil || len(network.Missing) != 0 {
				t.Fatalf("missing plugins %v: %v", network.Missing, err)
			}
			network.CacheDir = filepath.Join(dir, "cache")

			const netns = "kubectl-runtime-cni-test"
			ip(t, "netns", "add", netns)
			there := true
			t.Cleanup(func() {
				if there {
					ip(t, "netns", "del", netns)
				}
			})
			path := "/var/run/netns/" + netns
			config := libcni.NewCNIConfigWithCacheDir(network.BinDirs, network.CacheDir, nil)
			if _, err := config.AddNetworkList(t.Context(), network.list, &libcni.RuntimeConf{ContainerID: "sandbox", NetNS: path, IfName: "eth0"}); err != nil {
				t.Fatal(err)
			}
			leases, err := Leases(filepath.Join(dir, "leases"))
			if err != nil || len(leases) != 1 || leases[0].ContainerID != "sandbox" || leases[0].Network != "pods" {
				t.Fatalf("after ADD: %+v, %v", leases, err)
			}
			if !keep {
				ip(t, "netns", "del", netns)
				there = false
			}
			for range 2 { // repeatable
				if err := network.Del(t.Context(), Attachment{ContainerID: "sandbox", Netns: path, Namespace: "ns", Name: "pod"}); err != nil {
					t.Fatal(err)
				}
			}
			if leases, err := Leases(filepath.Join(dir, "leases")); err != nil || len(leases) != 0 {
				t.Errorf("after DEL: %+v, %v", leases, err)
			}
		})
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

func TestLeases(t *testing.T) {
	dir := t.TempDir()
	for path, content := range map[string]string{
		"pods/10.0.0.2": "aaa\r\neth0", "pods/10.0.0.3": "bbb", "pods/10.0.0.4": "aaa\r\nnet1", "six/fd00::2": "ccc\r\neth0",
		"pods/lock": "", "pods/last_reserved_ip.0": "10.0.0.4", "stray": "", "pods/10.0.0.5": "",
	} {
		write(t, filepath.Join(dir, path), content, 0o600)
	}
	got, err := Leases(dir)
	if err != nil {
		t.Fatal(err)
	}
	lease := func(network, ip, id string) Lease {
		return Lease{Path: filepath.Join(dir, network, ip), Network: network, IP: netip.MustParseAddr(ip), ContainerID: id}
	}
	want := []Lease{lease("pods", "10.0.0.2", "aaa"), lease("pods", "10.0.0.3", "bbb"), lease("pods", "10.0.0.4", "aaa"), lease("pods", "10.0.0.5", ""), lease("six", "fd00::2", "ccc")}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	released, err := Release(dir, func(lease Lease) bool { return lease.ContainerID != "bbb" && lease.ContainerID != "ccc" })
	if err != nil || len(released) != 2 {
		t.Errorf("released %v, %v", released, err)
	}
	if got, err = Leases(dir); err != nil || len(got) != 3 || got[0].ContainerID != "bbb" {
		t.Errorf("left: %v, %v", got, err)
	}
	if got, err := Leases(filepath.Join(dir, "gone")); err != nil || len(got) != 0 {
		t.Errorf("no directory: %v, %v", got, err)
	}
}

// As the kubelet 1.23.17 writes it.
const checkpointFile = `{"version":"v1","name":"web","namespace":"default","data":{"port_mappings":[
	{"protocol":"tcp","container_port":80,"host_port":8080},{"protocol":"udp","container_port":53,"host_port":53,"host_ip":"10.0.0.1"},
	{"protocol":"tcp","container_port":9}]},"checksum":3434389534}`

func TestCheckpointPortMappings(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "abc"), checkpointFile, 0o600)
	write(t, filepath.Join(dir, "host"), `{"version":"v1","name":"p","namespace":"n","data":{"host_network":true},"checksum":1}`, 0o600)
	write(t, filepath.Join(dir, "torn"), `{"version":"v1","na`, 0o600)
	write(t, filepath.Join(dir, "newer"), `{"version":"v2"}`, 0o600)
	got, err := CheckpointPortMappings(dir, "abc")
	want := []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, {HostPort: 53, ContainerPort: 53, Protocol: "udp", HostIP: "10.0.0.1"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v; -want +got\n%s", err, diff)
	}
	for _, id := range []string{"host", "gone"} {
		if got, err := CheckpointPortMappings(dir, id); err != nil || len(got) != 0 {
			t.Errorf("%s: %v, %v", id, got, err)
		}
	}
	for _, id := range []string{"torn", "newer"} {
		if _, err := CheckpointPortMappings(dir, id); err == nil || !strings.Contains(err.Error(), id) {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func FuzzCheckpoint(f *testing.F) {
	f.Add([]byte(checkpointFile))
	f.Add([]byte(`{"version":"v1","data":{"port_mappings":[null,{"host_port":-1}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		mappings, err := parseCheckpoint(data)
		if err != nil && mappings != nil {
			t.Error("mappings beside an error")
		}
		for _, m := range mappings {
			if m.HostPort <= 0 || m.Protocol == "" {
				t.Errorf("unusable mapping %+v", m)
			}
		}
	})
}

func FuzzLease(f *testing.F) {
	f.Add([]byte("abc\r\neth0"))
	f.Add([]byte("abc"))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if owner := leaseOwner(data); strings.ContainsAny(owner, "\r\n") || owner != strings.TrimSpace(owner) {
			t.Errorf("owner %q", owner)
		}
	})
}
