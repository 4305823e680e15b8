package kubelet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const nodeJSON = `{"status":{"conditions":[{"type":"MemoryPressure","status":"False"},
	{"type":"Ready","status":"True","message":"kubelet is posting ready status","lastHeartbeatTime":"2026-01-02T03:04:05Z"}],
	"nodeInfo":{"containerRuntimeVersion":"containerd://1.6.20~ds1","bootID":"b1"}}}`

// TestNode reads a node over TLS with a client certificate as kubelets keep it, certificate and key in one file, and with a token.
func TestNode(t *testing.T) {
	lease := `{"spec":{"renewTime":"2026-01-02T03:04:09.123456Z"}}`
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 0 && r.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		switch {
		case r.URL.Path == "/api/v1/nodes/node-1":
			_, _ = fmt.Fprint(w, nodeJSON)
		case strings.HasSuffix(r.URL.Path, "/kube-node-lease/leases/node-1") && lease != "":
			_, _ = fmt.Fprint(w, lease)
		default:
			http.NotFound(w, r)
		}
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	defer server.Close()

	dir := t.TempDir()
	cert := server.TLS.Certificates[0]
	key, err := marshalKey(cert)
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	if err := os.WriteFile(filepath.Join(dir, "pair.pem"), append(key, ca...), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, user := range map[string]string{
		"certificate": "client-certificate: pair.pem\n    client-key: pair.pem",
		"token":       "token: secret",
	} {
		path := filepath.Join(dir, name)
		content := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: x
clusters:
- name: c
  cluster:
    server: %s/
    certificate-authority-data: %s
contexts:
- name: x
  context: {cluster: c, user: u}
users:
- name: u
  user:
    %s
`, server.URL, base64.StdEncoding.EncodeToString(ca), user)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		api, err := NewAPI(os.ReadFile, path)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		node, err := api.Node(context.Background(), "node-1")
		want := Node{
			Ready: true, ReadyMessage: "kubelet is posting ready status", RuntimeVersion: "containerd://1.6.20~ds1", BootID: "b1",
			Reported: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Renewed: time.Date(2026, 1, 2, 3, 4, 9, 123456000, time.UTC),
		}
		if err != nil || node != want {
			t.Errorf("%s: %+v %v", name, node, err)
		}
	}
	api, err := NewAPI(os.ReadFile, filepath.Join(dir, "token"))
	if err != nil {
		t.Fatal(err)
	}
	lease = ""
	if node, err := api.Node(context.Background(), "node-1"); err != nil || !node.Renewed.IsZero() || node.Reported.Second() != 5 {
		t.Errorf("without a Lease: %+v %v", node, err)
	}
	api.token = "wrong"
	if _, err := api.Node(context.Background(), "node-1"); err == nil || !strings.Contains(err.Error(), "who are you") {
		t.Errorf("refused: %v", err)
	}
}

func marshalKey(cert tls.Certificate) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

func TestHealthy(t *testing.T) {
	answer, code := "ok", http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = fmt.Fprint(w, answer)
	}))
	defer server.Close()
	if err := Healthy(context.Background(), server.URL); err != nil {
		t.Error(err)
	}
	answer, code = "[-]syncloop failed", http.StatusInternalServerError
	if err := Healthy(context.Background(), server.URL); err == nil || !strings.Contains(err.Error(), "syncloop") {
		t.Error(err)
	}
}
