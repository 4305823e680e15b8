package canary

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// syncBuffer tells when the first line is complete.
type syncBuffer struct {
	bytes.Buffer
	line chan struct{}
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	n, err := b.Buffer.Write(p)
	close(b.line)
	return n, err
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestServe(t *testing.T) {
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "who are you", http.StatusUnauthorized)
	}))
	defer api.Close()
	address, err := url.Parse(api.URL)
	if err != nil {
		t.Fatal(err)
	}
	cgroup := t.TempDir()
	write(t, filepath.Join(cgroup, "memory/memory.limit_in_bytes"), "67108864\n")
	out := &syncBuffer{line: make(chan struct{})}
	port := freePort(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, Options{
			Dir: t.TempDir(), Port: port, ExpectMemory: 64 << 20, Out: out, CgroupRoot: cgroup, Patience: 2 * time.Second,
			Getenv: func(name string) string {
				return map[string]string{"KUBERNETES_SERVICE_HOST": address.Hostname(), "KUBERNETES_SERVICE_PORT": address.Port()}[name]
			},
		})
	}()
	health := "http://127.0.0.1:" + strconv.Itoa(port) + "/healthz"
	var body []byte
	for len(body) == 0 {
		if response, err := http.Get(health); err == nil {
			body, _ = io.ReadAll(response.Body)
			_ = response.Body.Close()
		}
	}
	if string(body) != "ok" {
		t.Errorf("/healthz says %q", body)
	}
	<-out.line
	var report Report
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		t.Fatalf("%q: %v", out.String(), err)
	}
	// What no DNS server answers for is not asked twice: the node is out of service meanwhile.
	want := map[string]bool{"api-address": true, "dns": false, "api-name": true, "memory-limit": true, "volume": true, "probe": true}
	for _, c := range report.Canary.Checks {
		if ok, known := want[c.Name]; !known || ok != c.OK || c.Message == "" {
			t.Errorf("%+v", c)
		}
		delete(want, c.Name)
	}
	if len(want) > 0 {
		t.Errorf("not checked: %v", want)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNoProbe(t *testing.T) {
	if message, err := probe(context.Background(), Options{Port: 8080, Patience: time.Millisecond}, make(chan struct{})); err == nil || message != "" {
		t.Errorf("%q, %v", message, err)
	}
}

func TestMemoryLimit(t *testing.T) {
	for _, test := range []struct {
		file, content string
		ok            bool
	}{
		{"memory.max", "64\n", true},
		{"memory.max", "max\n", false},
		{"memory/memory.limit_in_bytes", "64", true},
		{"memory/memory.limit_in_bytes", "9223372036854771712", false},
		{"other", "64", false},
	} {
		root := t.TempDir()
		write(t, filepath.Join(root, test.file), test.content)
		if _, err := memoryLimit(context.Background(), Options{CgroupRoot: root, ExpectMemory: 64}); (err == nil) != test.ok {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

func TestVolume(t *testing.T) {
	if _, err := volume(context.Background(), Options{Dir: "/proc"}); err == nil {
		t.Error("wrote to /proc")
	}
	report := run(context.Background(), Options{Getenv: func(string) string { return "" }, Patience: time.Millisecond}, nil)
	for _, c := range report.Canary.Checks {
		if (c.Name == "volume" || c.Name == "memory-limit" || c.Name == "api-address") && (!c.OK || !c.Skipped) {
			t.Errorf("not skipped: %+v", c)
		}
	}
}
