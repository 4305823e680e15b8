package containerd_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// What Registries writes is proved by pulls of real daemons: a hosts.toml that containerd does not understand is only logged, and
// the pull goes past it.
func TestRegistriesAreReached(t *testing.T) {
	ip := agenttest.Outside(t)
	cert, ca := agenttest.SelfSigned(t, ip)
	// Whatever goes past the registry must not leave this machine.
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	t.Setenv("NO_PROXY", ip)
	t.Setenv("no_proxy", ip)
	for _, release := range agenttest.Releases(t) {
		for name, c := range map[string]struct {
			cert    *tls.Certificate
			setup   func(address string) (mirrors, insecure []string, docker containerd.HostFiles)
			image   string // empty: the registry's own
			reached bool
		}{
			"unknown CA": {cert: cert, setup: func(string) (m, i []string, d containerd.HostFiles) { return }},
			"private CA": {cert: cert, setup: func(a string) (m, i []string, d containerd.HostFiles) {
				return nil, nil, containerd.HostFiles{a: {"ca.crt": ca}}
			}, reached: true},
			"insecure with TLS":  {cert: cert, setup: func(a string) (m, i []string, d containerd.HostFiles) { return nil, []string{a}, nil }, reached: true},
			"insecure and plain": {setup: func(a string) (m, i []string, d containerd.HostFiles) { return nil, []string{a}, nil }, reached: true},
			"plain mirror":       {setup: func(a string) (m, i []string, d containerd.HostFiles) { return []string{"http://" + a}, nil, nil }, image: "docker.io/library/x:1", reached: true},
			"mirror with a CA": {cert: cert, setup: func(a string) (m, i []string, d containerd.HostFiles) {
				return []string{"https://" + a}, nil, containerd.HostFiles{a: {"ca.crt": ca}}
			}, image: "docker.io/library/x:1", reached: true},
		} {
			t.Run(release.Name+"/"+name, func(t *testing.T) {
				address, manifests := agenttest.Registry(t, ip, c.cert, nil)
				daemon := agenttest.Start(t, release, agenttest.Isolated+`[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "DIR/certs.d"
`, "")
				mirrors, insecureHosts, docker := c.setup(address)
				files, warnings := containerd.Registries(filepath.Join(daemon.Dir, "certs.d"), mirrors, insecureHosts, docker, nil)
				if len(warnings) > 0 {
					t.Errorf("warnings %q", warnings)
				}
				for _, f := range files {
					if err := os.MkdirAll(filepath.Dir(f.Path), 0o700); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(f.Path, f.Data, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				conn, err := grpc.NewClient("unix://"+daemon.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				image := c.image
				if image == "" {
					image = address + "/x:1"
				}
				_, err = runtimeapi.NewImageServiceClient(conn).PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}, grpc.WaitForReady(true))
				if (manifests.Load() > 0) != c.reached || c.reached && err != nil {
					t.Errorf("%d requests, pull: %v", manifests.Load(), err)
				}
			})
		}
	}
}
