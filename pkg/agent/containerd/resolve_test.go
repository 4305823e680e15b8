package containerd_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// counted is a registry that has x:1 and counts its requests.
type counted struct {
	*httptest.Server
	mu       sync.Mutex
	requests []string
}

func (c *counted) seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string{}, c.requests...)
}

func (c *counted) host() string { return c.Listener.Addr().String() }

// serve answers every request by handle, or has x:1 and nothing else.
func serve(t *testing.T, cert *tls.Certificate, handle http.HandlerFunc) *counted {
	t.Helper()
	c := &counted{}
	if handle == nil {
		handle = func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/x/manifests/1") {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
			w.Header().Set("Content-Length", "2")
		}
	}
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.requests = append(c.requests, r.Method+" "+r.URL.Path)
		c.mu.Unlock()
		handle(w, r)
	}))
	c.Config.ErrorLog = nil
	if cert != nil {
		c.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
		c.StartTLS()
	} else {
		c.Start()
	}
	t.Cleanup(c.Close)
	return c
}

// hosts writes a certs.d directory.
func hostsDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// nobody is an address where nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func TestResolve(t *testing.T) {
	cert, ca := agenttest.SelfSigned(t, "127.0.0.1")
	plain, private := serve(t, nil, nil), serve(t, cert, nil)
	basic := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if user, secret, _ := r.BasicAuth(); user+":"+secret == "u:s" {
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
			w.Header().Set("Content-Length", "2")
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="lab"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	var token *counted
	token = serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			_, _ = fmt.Fprint(w, `{"token":"t"}`)
		case r.Header.Get("Authorization") == "Bearer t":
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
			w.Header().Set("Content-Length", "2")
		default:
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+token.URL+`/token",service="lab"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	broken := serve(t, nil, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	closed := nobody(t)
	caFile := filepath.Join(hostsDir(t, map[string]string{"ca.crt": string(ca)}), "ca.crt")
	const mirror = "server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n%s"
	for name, c := range map[string]struct {
		files   map[string]string
		ref     string
		environ []string
		creds   bool
		// want are the attempts: "ENDPOINT has|answers|fails".
		want string
		// requests are what the counted registries saw.
		requests map[*counted]string
	}{
		"plain": {
			files: map[string]string{"r.test/hosts.toml": `server = "` + plain.URL + `"`}, ref: "r.test/x:1", want: plain.URL + " has",
			requests: map[*counted]string{plain: "HEAD /v2/x/manifests/1"},
		},
		"an image that it does not have": {
			files: map[string]string{"r.test/hosts.toml": `server = "` + plain.URL + `"`}, ref: "r.test/y:1", want: plain.URL + " answers",
			requests: map[*counted]string{plain: "HEAD /v2/y/manifests/1"},
		},
		"unknown CA": {files: map[string]string{"r.test/hosts.toml": `server = "` + private.URL + `"`}, ref: "r.test/x:1", want: private.URL + " fails", requests: map[*counted]string{private: ""}},
		"known CA": {
			files: map[string]string{"r.test/hosts.toml": "server = \"" + private.URL + "\"\nca = \"" + caFile + "\"\n"}, ref: "r.test/x:1", want: private.URL + " has",
			requests: map[*counted]string{private: "HEAD /v2/x/manifests/1"},
		},
		"missing CA's file": {files: map[string]string{"r.test/hosts.toml": "server = \"" + private.URL + "\"\nca = \"/nowhere/ca.crt\"\n"}, ref: "r.test/x:1", want: "error"},
		"plain HTTP on a TLS port": {
			files: map[string]string{"r.test/hosts.toml": `server = "http://` + private.host() + `"`}, ref: "r.test/x:1", want: "http://" + private.host() + " fails",
		},
		"nobody listens": {files: map[string]string{"r.test/hosts.toml": `server = "http://` + closed + `"`}, ref: "r.test/x:1", want: "http://" + closed + " fails"},
		"mirror first": {
			files: map[string]string{"docker.io/hosts.toml": fmt.Sprintf(mirror, "http://"+closed, plain.URL, "")}, ref: "docker.io/library/x:1", want: plain.URL + " has",
			requests: map[*counted]string{plain: "HEAD /v2/library/x/manifests/1"},
		},
		"mirror that fails": {
			files: map[string]string{"docker.io/hosts.toml": fmt.Sprintf(mirror, plain.URL, private.URL, "")}, ref: "docker.io/library/x:1", want: private.URL + " fails, " + plain.URL + " has",
		},
		"mirror that lacks the image": {
			files: map[string]string{"docker.io/hosts.toml": fmt.Sprintf(mirror, "http://"+closed, plain.URL, "")}, ref: "docker.io/library/y:1", want: plain.URL + " answers, http://" + closed + " fails",
		},
		"mirror not for tags": {
			files: map[string]string{"docker.io/hosts.toml": fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\"]\n", plain.URL, "http://"+closed)}, ref: "docker.io/library/x:1", want: plain.URL + " has",
		},
		"without credentials": {
			files: map[string]string{"r.test/hosts.toml": `server = "` + basic.URL + `"`}, ref: "r.test/x:1", want: basic.URL + " answers",
			requests: map[*counted]string{basic: "HEAD /v2/x/manifests/1"},
		},
		"with credentials": {files: map[string]string{"r.test/hosts.toml": `server = "` + basic.URL + `"`}, ref: "r.test/x:1", creds: true, want: basic.URL + " has"},
		"with a token that anyone may have": {
			files: map[string]string{"r.test/hosts.toml": `server = "` + token.URL + `"`}, ref: "r.test/x:1", want: token.URL + " has",
			requests: map[*counted]string{token: "HEAD /v2/x/manifests/1, GET /token, HEAD /v2/x/manifests/1"},
		},
		"bad gateway": {files: map[string]string{"r.test/hosts.toml": `server = "` + broken.URL + `"`}, ref: "r.test/x:1", want: broken.URL + " fails"},
		"through a proxy": {
			files: map[string]string{"r.test/hosts.toml": `server = "http://registry.invalid"`}, ref: "r.test/x:1", environ: []string{"http_proxy=" + plain.URL, "NO_PROXY=other"}, want: "http://registry.invalid has",
			requests: map[*counted]string{plain: "HEAD /v2/x/manifests/1"},
		},
		"past the proxy": {
			files: map[string]string{"r.test/hosts.toml": `server = "http://registry.invalid"`}, ref: "r.test/x:1", environ: []string{"HTTP_PROXY=" + plain.URL, "NO_PROXY=.invalid"}, want: "http://registry.invalid fails",
			requests: map[*counted]string{plain: ""},
		},
		"directory of the other spelling": {files: map[string]string{"r.test_5000_/hosts.toml": `server = "` + plain.URL + `"`}, ref: "r.test:5000/x:1", want: plain.URL + " has"},
	} {
		t.Run(name, func(t *testing.T) {
			before := map[*counted]int{}
			for r := range c.requests {
				before[r] = len(r.seen())
			}
			var credentials func(string) (string, string, error)
			if c.creds {
				credentials = func(string) (string, string, error) { return "u", "s", nil }
			}
			attempts, err := containerd.Resolve(t.Context(), hostsDir(t, c.files), c.ref, c.environ, credentials)
			var got []string
			for _, a := range attempts {
				what := "fails"
				switch {
				case a.Has:
					what = "has"
				case a.Answered:
					what = "answers"
				}
				if (a.Err == nil) != a.Has {
					t.Errorf("%+v", a)
				}
				got = append(got, a.Endpoint+" "+what)
			}
			if err != nil {
				got = []string{"error"}
			}
			if strings.Join(got, ", ") != c.want {
				t.Errorf("got %s, %v, want %s\n%+v", got, err, c.want, attempts)
			}
			for r, want := range c.requests {
				if seen := strings.Join(r.seen()[before[r]:], ", "); seen != want {
					t.Errorf("%s saw %q, want %q", r.URL, seen, want)
				}
			}
		})
	}
}

// A registry that accepts connections and says nothing holds up nobody for longer than the context.
func TestResolveEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	dir := hostsDir(t, map[string]string{"r.test/hosts.toml": fmt.Sprintf("server = \"http://%s\"\n", l.Addr())})
	started := time.Now()
	attempts, err := containerd.Resolve(ctx, dir, "r.test/x:1", nil, nil)
	if err != nil || len(attempts) != 1 || attempts[0].Answered || time.Since(started) > 10*time.Second {
		t.Errorf("after %s: %+v, %v", time.Since(started), attempts, err)
	}
}
