package containerd_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// outside is an address of this machine that is not localhost, which containerd trusts whatever it is told.
func outside(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String()
		}
	}
	t.Skip("needs a network address beside localhost")
	return ""
}

// registry serves one image without layers under every name and counts the requests for its manifest.
func registry(t *testing.T, ip string, cert *tls.Certificate) (address string, manifests *atomic.Int32) {
	t.Helper()
	manifests = &atomic.Int32{}
	config := fmt.Sprintf(`{"architecture":%q,"os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}`, runtime.GOARCH)
	digest := func(s string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s))) }
	const kind = "application/vnd.oci.image.manifest.v1+json"
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`,
		kind, digest(config), len(config))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "/manifests/"):
			manifests.Add(1)
			w.Header().Set("Content-Type", kind)
			w.Header().Set("Docker-Content-Digest", digest(manifest))
			w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
			_, _ = io.WriteString(w, manifest)
		case strings.HasSuffix(r.URL.Path, "/blobs/"+digest(config)):
			_, _ = io.WriteString(w, config)
		default:
			http.NotFound(w, r)
		}
	}))
	_ = server.Listener.Close()
	listener, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	server.Listener = listener
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes are meant to fail
	if cert == nil {
		server.Start()
	} else {
		server.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
		server.StartTLS()
	}
	t.Cleanup(server.Close)
	return listener.Addr().String(), manifests
}

// selfSigned makes a certificate for an address.
func selfSigned(t *testing.T, ip string) (*tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.ParseIP(ip)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// What Registries writes is proved by pulls of real daemons: a hosts.toml that containerd does not understand is only logged, and
// the pull goes past it.
func TestRegistriesAreReached(t *testing.T) {
	ip := outside(t)
	cert, ca := selfSigned(t, ip)
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
				address, manifests := registry(t, ip, c.cert)
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
