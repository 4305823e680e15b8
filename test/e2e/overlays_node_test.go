package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

// dressed is a node with a layout.
type dressed struct {
	*wardrobe
	layout
	node string
	// files are those before the switch, said what the switch printed.
	files, said string
	// round counts the returns to Docker: images that were pulled are not pulled again.
	round int
}

// wardrobe is what the nodes of one cluster share.
type wardrobe struct {
	*cluster
	plain, private lab.Registry
	proxy          *proxy
	// spare is a node on Docker that pushes.
	spare string
	mu    sync.Mutex
}

const overlayNamespace = "overlays"

// wardrobe sets up the proxy, the namespace with a registry's password, and classes for the runtimes of overlays.
func (c *cluster) wardrobe(t *testing.T, spare string) *wardrobe {
	t.Helper()
	w := &wardrobe{cluster: c, spare: spare}
	for _, r := range c.Registries() {
		if r.User == "" {
			w.plain = r
		} else {
			w.private = r
		}
	}
	w.proxy = startProxy(t, "10.88.0.1:3128", w.plain.Address)
	c.kubectl(t, "create", "namespace", overlayNamespace)
	c.kubectl(t, "-n", overlayNamespace, "create", "secret", "docker-registry", "private",
		"--docker-server", w.private.Address, "--docker-username", w.private.User, "--docker-password", w.private.Password)
	for _, handler := range []string{"verbose", "extra"} {
		w.apply(t, map[string]any{"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": map[string]any{"name": handler}, "handler": handler})
	}
	return w
}

// dress gives the node what files alone cannot.
func (w *wardrobe) dress(t *testing.T, node string, l layout) *dressed {
	t.Helper()
	n := &dressed{wardrobe: w, layout: l, node: node}
	if l.prepare != nil {
		l.prepare(t, n)
	}
	n.files = w.fingerprint(t, node)
	return n
}

func (c *cluster) apply(t *testing.T, object map[string]any) {
	t.Helper()
	data, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "object.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "apply", "-f", path)
}

// push makes an image with a layer of its own, pushes it to the registries from the spare node, and returns its tag.
func (n *dressed) push(t *testing.T, repository string, on runtime) string {
	t.Helper()
	tag := fmt.Sprintf("%s-%s-%d", n.node, on, n.round)
	image := n.plain.Address + "/" + repository + ":" + tag
	n.mu.Lock()
	defer n.mu.Unlock()
	n.exec(t, n.spare, `docker run --network none --name making lab.local/busybox:1 /bin/busybox sh -c 'echo `+image+` > /made' &&
		docker commit making `+image+` && docker rm making && docker push -q `+image+` && docker rmi `+image)
	return tag
}

// pod is one that only its node runs.
type pod struct {
	name, image string
	// line is for a shell; empty sleeps.
	line string
	// secret has the password for the image's registry; handler is that of a RuntimeClass.
	secret, handler string
	// mount is a path of the host, with no type said.
	mount string
}

// create makes the pod and returns what removes it again.
func (n *dressed) create(t *testing.T, p pod) (name string, remove func()) {
	t.Helper()
	name = p.name + "-" + n.node
	line := p.line + "; exec /bin/busybox sleep 100000"
	container := map[string]any{
		"name": "main", "image": p.image, "imagePullPolicy": "IfNotPresent",
		"command": []string{"/bin/busybox", "sh", "-c", strings.TrimPrefix(line, "; ")},
	}
	spec := map[string]any{"nodeName": n.node, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false}
	if p.secret != "" {
		spec["imagePullSecrets"] = []map[string]any{{"name": p.secret}}
	}
	if p.handler != "" {
		spec["runtimeClassName"] = p.handler
	}
	if p.mount != "" {
		spec["volumes"] = []map[string]any{{"name": "host", "hostPath": map[string]any{"path": p.mount}}}
		container["volumeMounts"] = []map[string]any{{"name": "host", "mountPath": "/host"}}
	}
	spec["containers"] = []any{container}
	n.apply(t, map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name, "namespace": overlayNamespace}, "spec": spec,
	})
	return name, func() { n.kubectl(t, "-n", overlayNamespace, "delete", "pod", name, "--grace-period=1") }
}

// waits returns why the pod's container does not run yet, empty once it does.
func (n *dressed) waits(t *testing.T, name string) string {
	t.Helper()
	out := n.kubectl(t, "-n", overlayNamespace, "get", "pod", name, "-o",
		`jsonpath={.status.phase} {.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}`)
	if strings.HasPrefix(out, "Running") {
		return ""
	}
	return "pod " + name + ": " + out
}

// runs runs the pod until its container is up and returns its log, which is not empty if the pod has a line.
func (n *dressed) runs(t *testing.T, p pod) string {
	t.Helper()
	name, remove := n.create(t, p)
	defer remove()
	eventually(t, 90*time.Second, func() string { return n.waits(t, name) })
	if p.line == "" {
		return ""
	}
	var log string
	eventually(t, 20*time.Second, func() string {
		if log = n.kubectl(t, "-n", overlayNamespace, "logs", name); log == "" {
			return "pod " + name + " has written nothing"
		}
		return ""
	})
	return log
}

// wantPulled checks that the registry served the image to the node itself.
func (n *dressed) wantPulled(t *testing.T, r lab.Registry, repository, tag string) {
	t.Helper()
	for _, want := range []string{"/v2/" + repository + "/manifests/" + tag, "/v2/" + repository + "/blobs/sha256:"} {
		if n.served(t, r, want) == 0 {
			t.Errorf("%s does not show that %s was served to %s", r.AccessLog, want, n.node)
		}
	}
}

// served counts what of a path the registry has served to the node.
func (n *dressed) served(t *testing.T, r lab.Registry, path string) int {
	t.Helper()
	data, err := os.ReadFile(r.AccessLog)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, n.NodeIP(n.node)+" ") && strings.Contains(line, path) && strings.Contains(line, `" 200 `) {
			count++
		}
	}
	return count
}

// proxy sends what it is asked for over plain HTTP to one registry, and refuses to connect anyone to anything.
type proxy struct {
	mu    sync.Mutex
	asked []string
}

func startProxy(t *testing.T, address, registry string) *proxy {
	t.Helper()
	p := &proxy{}
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	server := &http.Server{Addr: address, ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked = append(p.asked, r.Method+" "+r.Host+" "+r.URL.Path)
		p.mu.Unlock()
		if r.Method == http.MethodConnect {
			http.Error(w, "no way", http.StatusBadGateway)
			return
		}
		forward.ServeHTTP(w, r)
	})}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-failed; err != http.ErrServerClosed { //nolint:errorlint // as documented
			t.Errorf("proxy: %v", err)
		}
	})
	return p
}

// wantAsked checks that someone asked the proxy for this.
func (p *proxy) wantAsked(t *testing.T, want string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.ContainsFunc(p.asked, func(asked string) bool { return strings.Contains(asked, want) }) {
		t.Errorf("nobody asked the proxy for %q: %q", want, p.asked)
	}
}
