package steps

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// What answers a real Docker, and not a containerd with the given certs.d, refuses. Everything else is reported.
func TestRegistriesAreTried(t *testing.T) {
	ip := agenttest.Outside(t)
	cert, ca := agenttest.SelfSigned(t, ip)
	var locked, gone atomic.Bool
	plain, plainAsked := agenttest.Registry(t, ip, nil, nil)
	private, privateAsked := agenttest.Registry(t, ip, cert, func(r *http.Request) bool {
		_, _, ok := r.BasicAuth()
		return !locked.Load() || ok
	})
	lost, _ := agenttest.Registry(t, ip, nil, func(*http.Request) bool {
		if gone.Load() {
			panic(http.ErrAbortHandler)
		}
		return true
	})
	insecure, err := json.Marshal(map[string]any{"live-restore": true, "insecure-registries": []string{plain, private, lost}})
	if err != nil {
		t.Fatal(err)
	}
	engine := agenttest.StartEngineWith(t, "vfs", string(insecure))
	var names []string
	for _, address := range []string{plain, private, lost} {
		names = append(names, address+"/x:1")
		engine.Docker("pull", "-q", address+"/x:1")
	}
	gone.Store(true)
	trusted := "server = \"https://" + private + "\"\nca = \"DIR/ca.crt\"\n"
	for name, c := range map[string]struct {
		hosts   map[string]string // certs.d
		locked  bool
		refused string
		said    []string
		unsaid  string
	}{
		"all answer that answer Docker": {
			hosts: map[string]string{plain: "server = \"http://" + plain + "\"\n", private: trusted},
			said: []string{
				"registry " + plain + " answers containerd at http://" + plain, "registry " + private + " answers containerd at https://" + private,
				"registry " + lost + " answers neither containerd nor Docker: ",
			},
		},
		"plain HTTP after HTTPS": {
			hosts:  map[string]string{plain: "server = \"http://" + plain + "\"\n[host.\"https://" + plain + "\"]\n  skip_verify = true\n", private: trusted},
			said:   []string{"registry " + plain + " answers containerd at http://" + plain},
			unsaid: "an endpoint that is tried",
		},
		"a mirror that does not answer": {
			hosts: map[string]string{plain: "server = \"http://" + plain + "\"\n[host.\"http://127.0.0.1:1\"]\n", private: trusted},
			said:  []string{"registry " + plain + ": an endpoint that is tried for it does not answer containerd: http://127.0.0.1:1"},
		},
		"wanting credentials is an answer": {
			hosts: map[string]string{plain: "server = \"http://" + plain + "\"\n", private: trusted}, locked: true,
			said: []string{"registry " + private + " answers containerd at https://" + private + ", and wants credentials"},
		},
		"a CA that only Docker trusts": {
			hosts:   map[string]string{plain: "server = \"http://" + plain + "\"\n", private: "server = \"https://" + private + "\"\n"},
			refused: "registry " + private + " answers Docker, and does not answer containerd",
		},
		"the same, wanting credentials": {
			hosts:   map[string]string{plain: "server = \"http://" + plain + "\"\n"},
			refused: "registry " + private + " answers Docker, and does not answer containerd", locked: true,
		},
		"a file that names no registry": {
			hosts:   map[string]string{plain: "server = \"http://" + plain + "/v1\"\n[host.\"http://127.0.0.1:1\"]\n", private: "server = \"https://127.0.0.1:1\"\n"},
			refused: "https://127.0.0.1:1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			locked.Store(c.locked)
			before := [2]int32{plainAsked.Load(), privateAsked.Load()}
			dir := t.TempDir()
			for host, text := range c.hosts {
				path := filepath.Join(dir, host, "hosts.toml")
				err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o644))
				if err != nil {
					t.Fatal(err)
				}
			}
			config := filepath.Join(dir, "config.toml")
			err := errors.Join(os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o644), os.WriteFile(config, fmt.Appendf(nil,
				"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = %q\n", dir), 0o644))
			if err != nil {
				t.Fatal(err)
			}
			// This process has the environment of the containerd that is asked for.
			h := &node.Host{Systemd: host.Systemd{Run: nodetest.Answers(fmt.Sprintf("MainPID=%d\n", os.Getpid()))}, Spec: protocol.Spec{Images: names}}
			report := &heard{}
			err = tryRegistries(t.Context(), h, facts.Found{DockerSocket: engine.Socket, ContainerdConfig: config}, report)
			var refused *node.Refusal
			if (err != nil) != (c.refused != "") || err != nil && (!errors.As(err, &refused) || !strings.Contains(err.Error(), c.refused)) {
				t.Errorf("got %v, want %q, said %q", err, c.refused, report.lines)
			}
			for _, want := range c.said {
				if !slices.ContainsFunc(report.lines, func(line string) bool { return strings.Contains(line, want) }) {
					t.Errorf("%q does not say %q", report.lines, want)
				}
			}
			if c.unsaid != "" && strings.Contains(strings.Join(report.lines, "\n"), c.unsaid) {
				t.Errorf("%q says %q", report.lines, c.unsaid)
			}
			if asked := [2]int32{plainAsked.Load() - before[0], privateAsked.Load() - before[1]}; c.refused == "" && asked != [2]int32{1, 1} {
				t.Errorf("the registries were asked %d times for the manifest", asked)
			}
		})
	}
}

// heard is a report that keeps what is said.
type heard struct {
	node.Silent
	lines []string
}

func (h *heard) Info(text string) { h.lines = append(h.lines, text) }
func (h *heard) Warn(text string) { h.lines = append(h.lines, text) }
