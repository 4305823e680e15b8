package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cni"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// warned keeps the warnings.
type warned struct {
	node.Silent
	warnings []string
}

func (w *warned) Warn(message string) { w.warnings = append(w.warnings, message) }

// together is a CNI plugin that notes each DEL in the log and fails unless a second one runs at the same time.
const together = `#!/bin/sh
echo "DEL $CNI_CONTAINERID" >> %[1]s/log
n=0
while [ "$(grep -c DEL %[1]s/log)" -lt 2 ]; do
	n=$((n+1))
	if [ $n -gt 100 ]; then echo '{"cniVersion":"0.4.0","code":100,"msg":"alone"}'; exit 1; fi
	sleep 0.02
done
`

// TestDockershimPodsInOrder: the network's agent and the API server, which CNI DEL may need, run until the last DEL is over.
func TestDockershimPodsInOrder(t *testing.T) {
	dir, confDir := t.TempDir(), t.TempDir()
	log := filepath.Join(dir, "log")
	for path, content := range map[string]string{
		filepath.Join(confDir, "10-net.conflist"): `{"cniVersion":"0.4.0","name":"order","plugins":[{"type":"together"}]}`,
		filepath.Join(dir, "together"):            fmt.Sprintf(together, dir),
	} {
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	type container = nodetest.Container
	d := nodetest.StartDocker(t,
		&container{Name: "agent", Kind: "container", Uid: "u1"}, &container{Name: "agent-pause", Kind: "podsandbox", Uid: "u1"},
		&container{Name: "web", Kind: "container", Uid: "u2"}, &container{Name: "web-pause", Kind: "podsandbox", Uid: "u2", OwnNetwork: true},
		&container{Name: "dns", Kind: "container", Uid: "u3"}, &container{Name: "dns-pause", Kind: "podsandbox", Uid: "u3", OwnNetwork: true},
	)
	d.Told = func(name string) {
		file, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = fmt.Fprintln(file, "stop", name)
		_ = file.Close()
	}
	found := facts.Found{DockerSocket: "unix://" + d.Socket, CNIConfDir: confDir, CNIBinDir: dir}
	found.Facts.OldEndpoint = kubelet.Dockershim
	report := &warned{}
	if err := StopDockers(t.Context(), found, report); err != nil || len(report.warnings) > 0 {
		t.Fatalf("%v, warnings %q", err, report.warnings)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) != 8 {
		t.Fatalf("%q", lines)
	}
	for from := 0; from < 6; from += 2 { // each two are done at the same time
		slices.Sort(lines[from : from+2])
	}
	want := []string{"stop dns", "stop web", "DEL dns-pause", "DEL web-pause", "stop dns-pause", "stop web-pause", "stop agent", "stop agent-pause"}
	if !slices.Equal(lines, want) {
		t.Errorf("%q", lines)
	}
}

// TestDockershimPodsWithoutAgent: a CNI DEL that fails, or hangs, since the network's agent does not run keeps no pod from being stopped.
func TestDockershimPodsWithoutAgent(t *testing.T) {
	for name, plugin := range map[string]string{
		"it fails": "#!/bin/sh\necho '{\"cniVersion\":\"0.4.0\",\"code\":11,\"msg\":\"is the agent running?\"}'; exit 1\n",
		"it hangs": "#!/bin/sh\nexec sleep 1000\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir, confDir := t.TempDir(), t.TempDir()
			for path, content := range map[string]string{
				filepath.Join(confDir, "10-net.conflist"): `{"cniVersion":"0.4.0","name":"needy","plugins":[{"type":"needy"}]}`,
				filepath.Join(dir, "needy"):               plugin,
			} {
				if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			var containers []*nodetest.Container
			for n := range 20 {
				containers = append(containers, &nodetest.Container{Name: fmt.Sprintf("pause-%d", n), Kind: "podsandbox", Uid: fmt.Sprint(n), OwnNetwork: true})
			}
			d := nodetest.StartDocker(t, containers...)
			found := facts.Found{DockerSocket: "unix://" + d.Socket, CNIConfDir: confDir, CNIBinDir: dir}
			found.Facts.OldEndpoint = kubelet.Dockershim
			ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second) // for all of the cutover
			defer cancel()
			heard := &warned{}
			if err := StopDockers(ctx, found, heard); err != nil {
				t.Error(err)
			}
			for _, c := range containers {
				if c.Up || c.Killed {
					t.Errorf("%s: up %t, killed %t", c.Name, c.Up, c.Killed)
				}
			}
			if len(heard.warnings) != 1 || !strings.Contains(heard.warnings[0], "CNI DEL failed") || strings.Count(heard.warnings[0], "\n") > 4 {
				t.Errorf("warnings: %q", heard.warnings)
			}
		})
	}
}

// TestReleaseLeases: an address is freed when its sandbox is stopped or unknown to both runtimes, and kept when anything else may use it.
func TestReleaseLeases(t *testing.T) {
	id := func(letter string) string { return strings.Repeat(letter, 64) }
	for _, test := range []struct {
		name  string
		fails string // a call of containerd's CRI
		want  []string
	}{
		{name: "containerd answers", want: []string{"other/10.0.0.9", "pods/10.0.0.2", "pods/10.0.0.3", "pods/10.0.0.6", "pods/10.0.0.7"}},
		{name: "containerd fails", fails: "ListPodSandbox", want: []string{"other/10.0.0.9", "pods/10.0.0.2", "pods/10.0.0.3", "pods/10.0.0.4", "pods/10.0.0.6", "pods/10.0.0.7"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			confDir, leases := t.TempDir(), t.TempDir()
			files := map[string]string{filepath.Join(confDir, "10-net.conflist"): `{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"ptp"}]}`}
			for address, owner := range map[string]string{
				"pods/10.0.0.1":  id("a"), // Docker's stopped sandbox
				"pods/10.0.0.2":  id("b"), // a container of Docker's that is no sandbox
				"pods/10.0.0.3":  id("c"), // containerd's sandbox
				"pods/10.0.0.4":  id("d"), // nobody's
				"pods/10.0.0.6":  "default-" + id("d"),
				"pods/10.0.0.7":  "",
				"other/10.0.0.9": id("e"),
			} {
				files[filepath.Join(leases, address)] = owner + "\r\neth0"
			}
			for path, content := range files {
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			runtime := nodetest.StartCRI(t)
			runtime.Sandboxes, runtime.Fails[test.fails] = []string{id("c")}, true
			found := facts.Found{CNIConfDir: confDir}
			found.Facts.NewEndpoint = runtime.Endpoint
			sandbox := map[string]string{"io.kubernetes.docker.type": "podsandbox"}
			err := releaseLeases(t.Context(), leases, found, []docker.Container{{ID: id("a"), Labels: sandbox}, {ID: id("b")}}, node.Silent{})
			if err != nil {
				t.Fatal(err)
			}
			left, err := cni.Leases(leases)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, lease := range left {
				got = append(got, lease.Network+"/"+lease.IP.String())
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("left: got %q, want %q", got, test.want)
			}
		})
	}
}
