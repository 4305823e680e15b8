package agenttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Engine is a running Docker Engine 20.10 without networking, on directories of its own.
type Engine struct {
	t *testing.T
	// Socket is its unix:// URL; Root its data directory.
	Socket, Root string
	cli          string
}

// StartEngine runs Debian 12's Docker with its containerd until the test ends, and skips the test where there is none.
func StartEngine(t *testing.T) *Engine {
	t.Helper()
	return StartEngineOn(t, "vfs")
}

// StartEngineOn is StartEngine with another storage driver.
func StartEngineOn(t *testing.T, driver string) *Engine {
	t.Helper()
	return StartEngineWith(t, driver, `{"live-restore":true}`)
}

// StartEngineWith is StartEngineOn with another daemon.json.
func StartEngineWith(t *testing.T, driver, daemonJSON string) *Engine {
	t.Helper()
	needRoot(t)
	deb := debian(t)
	if deb == "" {
		t.Skip("no Docker Engine to test with: run on Debian 12")
	}
	bin := filepath.Join(deb, "usr/bin")
	backend := Start(t, Release{Name: "1.6 under Docker", Binary: filepath.Join(bin, "containerd"), Dir: bin},
		Isolated+"disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n", filepath.Join(deb, "usr/sbin/runc"))
	dir := filepath.Join(backend.Dir, "docker")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "daemon.json")
	if err := os.WriteFile(config, []byte(daemonJSON), 0o600); err != nil {
		t.Fatal(err)
	}
	e := &Engine{t: t, Socket: "unix://" + filepath.Join(dir, "d.sock"), Root: filepath.Join(dir, "root"), cli: filepath.Join(bin, "docker")}
	cmd := exec.Command(filepath.Join(deb, "usr/sbin/dockerd"), "--config-file", config, "-H", e.Socket, "--containerd", backend.Address,
		"--data-root", e.Root, "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"), "--storage-driver", driver,
		"--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false")
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+filepath.Join(deb, "usr/sbin")+":"+os.Getenv("PATH"))
	log := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if ids := strings.Fields(e.Docker("ps", "-aq")); len(ids) > 0 {
			e.Docker(append([]string{"rm", "-f"}, ids...)...)
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("dockerd said:\n%s", log.String())
		}
	})
	deadline := time.Now().Add(30 * time.Second)
	for exec.Command(e.cli, "-H", e.Socket, "version").Run() != nil {
		if time.Now().After(deadline) {
			t.Fatal("dockerd does not answer")
		}
		time.Sleep(100 * time.Millisecond)
	}
	return e
}

// Docker runs the docker command and returns its output without the last newline.
func (e *Engine) Docker(args ...string) string {
	e.t.Helper()
	cmd := exec.Command(e.cli, append([]string{"-H", e.Socket}, args...)...)
	said := &strings.Builder{}
	cmd.Stderr = said
	out, err := cmd.Output()
	if err != nil {
		e.t.Errorf("docker %v: %v\n%s", args, err, said)
	}
	return strings.TrimSpace(string(out))
}

// AddProgram makes an image with the test program and returns its ID.
func (e *Engine) AddProgram(name string) string {
	e.t.Helper()
	cmd := exec.Command(e.cli, "-H", e.Socket, "import", "-c", `ENTRYPOINT ["/program", "sleep"]`, "-", name)
	cmd.Stdin = strings.NewReader(string(tarOf(e.t, map[string][]byte{"program": Program(e.t)})))
	out, err := cmd.CombinedOutput()
	if err != nil {
		e.t.Fatalf("docker import: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}
