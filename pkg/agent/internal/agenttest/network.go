package agenttest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Network is a pod network of point-to-point links whose CNI plugins, like Cilium's or Amazon's, fail on ADD and DEL unless an agent answers.
type Network struct {
	BinDir, ConfDir string
	// Leases is the folder in which host-local keeps the addresses that are given to pods.
	Leases string
	socket string
}

// NewNetwork makes a network for subnet ("10.253.92.0/24"); its agent does not run yet.
func NewNetwork(t *testing.T, subnet string) Network {
	t.Helper()
	plugins := CNIPlugins(t)
	// t.TempDir() is too long for a socket's address.
	dir, err := os.MkdirTemp("", "net-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := Network{
		BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"), Leases: filepath.Join(dir, "leases"), socket: filepath.Join(dir, "agent.sock"),
	}
	for _, dir := range []string{n.BinDir, n.ConfDir} {
		if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // as on a host
			t.Fatal(err)
		}
	}
	for _, name := range []string{"ptp", "host-local", "loopback"} {
		if err := os.Symlink(filepath.Join(plugins, name), filepath.Join(n.BinDir, name)); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", n.BinDir, "github.com/kubectl-runtime/kubectl-runtime/test/lab/cmd/cni-needs-agent")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the CNI plugin: %v\n%s", err, out)
	}
	conf := fmt.Sprintf(`{"cniVersion":"0.4.0","name":"test","plugins":[
		{"type":"ptp","ipMasq":false,"ipam":{"type":"host-local","subnet":%q,"dataDir":%q}},
		{"type":"cni-needs-agent","socket":%q}]}`, subnet, n.Leases, n.socket)
	if err := os.WriteFile(filepath.Join(n.ConfDir, "10-test.conflist"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// StartAgent starts the agent and returns what ends it.
func (n Network) StartAgent(t *testing.T) (stop func()) {
	t.Helper()
	program := filepath.Join(n.BinDir, "cni-needs-agent")
	agent := exec.Command(program, "serve", n.socket)
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() {
		_ = agent.Process.Kill()
		_ = agent.Wait()
	}
	t.Cleanup(stop)
	deadline := time.Now().Add(15 * time.Second)
	for {
		conn, err := net.Dial("unix", n.socket)
		if err == nil {
			_ = conn.Close()
			return stop
		}
		if time.Now().After(deadline) {
			t.Fatalf("the CNI agent does not answer: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Held lists the addresses that are given to pods.
func (n Network) Held() []string {
	leases, _ := filepath.Glob(filepath.Join(n.Leases, "test", "[0-9]*"))
	return leases
}
