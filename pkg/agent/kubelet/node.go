package kubelet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Healthy asks a kubelet's healthz URL, as Setup.HealthzURL returns it.
func Healthy(ctx context.Context, url string) error {
	body, err := get(ctx, &http.Client{Timeout: 3 * time.Second}, url, "")
	if err != nil {
		return fmt.Errorf("kubelet is not healthy: %w", err)
	}
	if strings.TrimSpace(string(body)) != "ok" {
		return fmt.Errorf("kubelet is not healthy: it says %q", body)
	}
	return nil
}

// Node is what the API server holds about the node.
type Node struct {
	Ready bool
	// ReadyMessage is what the kubelet says about the condition Ready.
	ReadyMessage string
	// Reported is when the kubelet last sent the node's status, Renewed when it last renewed its Lease, both on its own clock. Reported is in
	// whole seconds. Renewed is zero where there is no Lease that can be read.
	Reported, Renewed time.Time
	// BootID is that of the boot in which the status was sent.
	BootID string
	// RuntimeVersion is nodeInfo.containerRuntimeVersion: "containerd://1.6.20~ds1".
	RuntimeVersion string
}

// API reads the node's own objects from the API server with the kubelet's credentials.
type API struct {
	server string
	token  string
	client *http.Client
}

// NewAPI reads the kubelet's kubeconfig. It knows client certificates and tokens, in the file or beside it, which is what kubelets
// have; for exec plugins and other means it returns an error.
func NewAPI(read Reader, path string) (*API, error) {
	data, err := read.bounded(path)
	if err != nil {
		return nil, fmt.Errorf("read the kubelet's kubeconfig: %w", err)
	}
	api, err := newAPI(read, data, filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("read the kubelet's kubeconfig %s: %w", path, err)
	}
	return api, nil
}

func newAPI(read Reader, data []byte, dir string) (*API, error) {
	var k kubeconfig
	if err := yaml.Unmarshal(data, &k); err != nil {
		return nil, err
	}
	cluster, user, err := k.current()
	if err != nil {
		return nil, err
	}
	api := &API{}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	for _, c := range k.Clusters {
		if c.Name != cluster {
			continue
		}
		api.server = strings.TrimSuffix(c.Cluster.Server, "/")
		config.ServerName, config.InsecureSkipVerify = c.Cluster.TLSServerName, c.Cluster.Insecure
		ca, err := either(read, dir, c.Cluster.CAData, c.Cluster.CA)
		if err != nil {
			return nil, err
		}
		if len(ca) > 0 {
			config.RootCAs = x509.NewCertPool()
			config.RootCAs.AppendCertsFromPEM(ca)
		}
	}
	for _, u := range k.Users {
		if u.Name != user {
			continue
		}
		if err := credentials(read, dir, config, u.User.CertData, u.User.KeyData, u.User.Cert, u.User.Key); err != nil {
			return nil, err
		}
		token, err := either(read, dir, []byte(u.User.Token), u.User.TokenFile)
		if err != nil {
			return nil, err
		}
		api.token = strings.TrimSpace(string(token))
	}
	if api.server == "" || api.token == "" && len(config.Certificates) == 0 {
		return nil, fmt.Errorf("it has no server, or no client certificate and no token")
	}
	api.client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: config, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true,
	}}
	return api, nil
}

func (k kubeconfig) current() (cluster, user string, err error) {
	for _, c := range k.Contexts {
		if c.Name == k.CurrentContext {
			return c.Context.Cluster, c.Context.User, nil
		}
	}
	return "", "", errNoContext
}

// credentials loads a client certificate; kubelets keep certificate and key in one file.
func credentials(read Reader, dir string, config *tls.Config, certData, keyData []byte, certFile, keyFile string) error {
	cert, err := either(read, dir, certData, certFile)
	if err != nil {
		return err
	}
	key, err := either(read, dir, keyData, keyFile)
	if err != nil || len(cert) == 0 && len(key) == 0 {
		return err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("client certificate: %w", err)
	}
	config.Certificates = []tls.Certificate{pair}
	return nil
}

func either(read Reader, dir string, data []byte, path string) ([]byte, error) {
	if len(data) > 0 || path == "" {
		return data, nil
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	return read.bounded(path)
}

// Node reads the node and, if the kubelet has one, its Lease.
func (a *API) Node(ctx context.Context, name string) (Node, error) {
	var object struct {
		Status struct {
			Conditions []struct {
				Type, Status, Message string
				LastHeartbeatTime     time.Time
			}
			NodeInfo struct{ ContainerRuntimeVersion, BootID string }
		}
	}
	if err := a.get(ctx, "/api/v1/nodes/"+url.PathEscape(name), &object); err != nil {
		return Node{}, fmt.Errorf("get node %s: %w", name, err)
	}
	node := Node{RuntimeVersion: object.Status.NodeInfo.ContainerRuntimeVersion, BootID: object.Status.NodeInfo.BootID}
	for _, c := range object.Status.Conditions {
		if c.Type == "Ready" {
			node.Ready, node.ReadyMessage, node.Reported = c.Status == "True", c.Message, c.LastHeartbeatTime
		}
	}
	var lease struct{ Spec struct{ RenewTime time.Time } }
	if err := a.get(ctx, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/"+url.PathEscape(name), &lease); err == nil {
		node.Renewed = lease.Spec.RenewTime
	}
	return node, nil
}

// statusError is an answer other than 200.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

// MayPass reports whether the same request can succeed a moment later: the server was not reached, is overloaded or fails. What it refuses,
// such as these credentials, or does not have, it will again.
func MayPass(err error) bool {
	status := (*statusError)(nil)
	return !errors.As(err, &status) || status.code >= http.StatusInternalServerError || status.code == http.StatusTooManyRequests
}

func (a *API) get(ctx context.Context, path string, into any) error {
	body, err := get(ctx, a.client, a.server+path, a.token)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("parse answer: %w", err)
	}
	return nil
}

func get(ctx context.Context, client *http.Client, url, token string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 16<<20))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		text := strings.TrimSpace(string(body[:min(len(body), 200)]))
		return nil, &statusError{response.StatusCode, fmt.Sprintf("GET %s: %s: %s", url, response.Status, text)}
	}
	return body, nil
}
