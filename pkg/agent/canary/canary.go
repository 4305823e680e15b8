// Package canary is what the canary pod runs on a node that was switched: it checks from inside a pod what applications rely on,
// says so in one line on its standard output, and then answers probes.
//
// It imports nothing of the agent's other packages. cmd/runtime-agent calls it; the plugin reads the line.
package canary

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Options say what to check.
type Options struct {
	// Dir is a volume to write to and read from; empty means none.
	Dir string
	// Port is where /healthz is served.
	Port int
	// ExpectMemory is the container's memory limit in bytes; 0 means do not look.
	ExpectMemory int64
	Out          io.Writer
	// Getenv and CgroupRoot are the process's own; other ones in tests.
	Getenv     func(string) string
	CgroupRoot string
	// Patience is how long a check that goes over the network is repeated; 0 means 30 s.
	Patience time.Duration
}

// Check is one check's result.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Skipped is set where there is nothing to check; OK is then true.
	Skipped bool   `json:"skipped,omitempty"`
	Message string `json:"message,omitempty"`
}

// Report is the line on the standard output: {"canary":{"checks":[…]}}.
type Report struct {
	Canary struct {
		Checks []Check `json:"checks"`
	} `json:"canary"`
}

// apiName is the API server's name on the cluster's DNS, completed by the pod's search path.
const apiName = "kubernetes.default.svc"

// Serve answers probes at /healthz until ctx ends, runs the checks meanwhile, and prints the Report. That a probe came is one of them: who
// waits for the report need not wait for the pod's status, too, which a kubelet sends late.
func Serve(ctx context.Context, o Options) error {
	if o.Patience == 0 {
		o.Patience = 30 * time.Second
	}
	mux := http.NewServeMux()
	probed := make(chan struct{})
	var once sync.Once
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok")
		once.Do(func() { close(probed) })
	})
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf(":%d", o.Port))
	if err != nil {
		return fmt.Errorf("serve canary: %w", err)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()

	if err := json.NewEncoder(o.Out).Encode(run(ctx, o, probed)); err != nil {
		return fmt.Errorf("print canary report: %w", err)
	}
	select {
	case err := <-failed:
		return fmt.Errorf("serve canary: %w", err)
	case <-ctx.Done():
		return server.Close()
	}
}

// run runs the checks in the order in which the report shows them. probed is closed once a probe has come.
func run(ctx context.Context, o Options, probed <-chan struct{}) Report {
	var report Report
	resolves := true
	for _, c := range []struct {
		name  string
		check func(context.Context, Options) (string, error)
	}{
		{"api-address", apiByAddress},
		{"dns", dns},
		{"api-name", func(ctx context.Context, o Options) (string, error) {
			if !resolves {
				return "names are not resolved", errSkip
			}
			return apiByName(ctx, o)
		}},
		{"memory-limit", memoryLimit},
		{"volume", volume},
		{"probe", func(ctx context.Context, o Options) (string, error) { return probe(ctx, o, probed) }},
	} {
		message, err := c.check(ctx, o)
		result := Check{Name: c.name, OK: err == nil, Message: message}
		resolves = resolves && (c.name != "dns" || err == nil)
		if errors.Is(err, errSkip) {
			result.OK, result.Skipped = true, true
		} else if err != nil {
			result.Message = err.Error()
		}
		report.Canary.Checks = append(report.Canary.Checks, result)
	}
	return report
}

var errSkip = errors.New("nothing to check")

// patient repeats a check over the network: kube-proxy and the CNI's own daemon may still be coming up on the node.
func patient(ctx context.Context, o Options, check func(ctx context.Context) (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Patience)
	defer cancel()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		message, err := check(ctx)
		if err == nil {
			return message, nil
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-ticker.C:
		}
	}
}

func apiByAddress(ctx context.Context, o Options) (string, error) {
	host, port := o.Getenv("KUBERNETES_SERVICE_HOST"), o.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return "the pod has no KUBERNETES_SERVICE_HOST", errSkip
	}
	return patient(ctx, o, func(ctx context.Context) (string, error) { return reach(ctx, net.JoinHostPort(host, port)) })
}

func apiByName(ctx context.Context, o Options) (string, error) {
	port := o.Getenv("KUBERNETES_SERVICE_PORT")
	if port == "" {
		port = "443"
	}
	return patient(ctx, o, func(ctx context.Context) (string, error) { return reach(ctx, net.JoinHostPort(apiName, port)) })
}

// reach makes a TLS connection and asks for /version. Any answer will do, also a 401: it is the way that is checked. Nothing secret is
// sent, so the certificate need not be trusted.
func reach(ctx context.Context, address string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
		DisableKeepAlives: true,
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/version", nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", fmt.Errorf("reach the API server: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	return address + " answers " + response.Status, nil
}

func dns(ctx context.Context, o Options) (string, error) {
	return patient(ctx, o, func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		addresses, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, apiName)
		if err != nil {
			return "", fmt.Errorf("resolve %s: %w", apiName, err)
		}
		return apiName + " is " + strings.Join(addresses, ", "), nil
	})
}

// memoryLimit reads the container's limit where its cgroup is mounted: cgroup v2, or v1 as the runtime mounts it.
func memoryLimit(_ context.Context, o Options) (string, error) {
	if o.ExpectMemory == 0 {
		return "no limit to expect", errSkip
	}
	for _, name := range []string{"memory.max", "memory/memory.limit_in_bytes"} {
		data, err := os.ReadFile(filepath.Join(o.CgroupRoot, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read memory limit: %w", err)
		}
		limit, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
		if err != nil || limit != o.ExpectMemory {
			return "", fmt.Errorf("%s is %s, not %d", name, strings.TrimSpace(string(data)), o.ExpectMemory)
		}
		return fmt.Sprintf("%d bytes", limit), nil
	}
	return "", fmt.Errorf("read memory limit: there is none below %s", o.CgroupRoot)
}

func volume(_ context.Context, o Options) (string, error) {
	if o.Dir == "" {
		return "no volume", errSkip
	}
	path := filepath.Join(o.Dir, "canary")
	content := make([]byte, 64<<10)
	_, _ = rand.Read(content) // never fails
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return "", fmt.Errorf("write volume: %w", err)
	}
	read, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read volume: %w", err)
	}
	if !bytes.Equal(read, content) {
		return "", errors.New("read volume: not what was written")
	}
	return "written and read back", nil
}

// probe waits until the kubelet has probed the pod, which it does each second.
func probe(ctx context.Context, o Options, probed <-chan struct{}) (string, error) {
	select {
	case <-probed:
		return "it has come", nil
	case <-ctx.Done():
	case <-time.After(o.Patience):
	}
	return "", fmt.Errorf("the kubelet has not asked port %d for /healthz", o.Port)
}
