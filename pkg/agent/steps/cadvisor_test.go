package steps

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// TestAnswerForDocker asks what cAdvisor asks, in its order.
func TestAnswerForDocker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker.sock")
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	end := answerForDocker(version.Version{Minor: 23}, "unix://"+path, node.Silent{})
	for _, test := range []struct {
		method, path string
		status       int
		key, want    string
	}{
		{http.MethodHead, "/_ping", http.StatusOK, "", ""},
		{http.MethodGet, "/v1.40/info", http.StatusOK, "DockerRootDir", "/var/lib/docker"},
		{http.MethodGet, "/v1.40/info", http.StatusOK, "Driver", ""}, // with one, the kubelet registers Docker
		{http.MethodGet, "/v1.40/version", http.StatusOK, "ApiVersion", "1.40"},
		{http.MethodGet, "/v1.40/containers/json", http.StatusServiceUnavailable, "message", "Docker is stopped on this node"},
	} {
		request, err := http.NewRequestWithContext(t.Context(), test.method, "http://docker"+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body := map[string]string{}
		if test.method == http.MethodGet {
			if err := json.NewDecoder(answer.Body).Decode(&body); err != nil {
				t.Error(err)
			}
		}
		_ = answer.Body.Close()
		if answer.StatusCode != test.status || body[test.key] != test.want || answer.Header.Get("API-Version") != "1.40" {
			t.Errorf("%s: %d, %s %q, API %q", test.path, answer.StatusCode, test.key, body[test.key], answer.Header.Get("API-Version"))
		}
	}
	end()
	if !host.Absent(path) {
		t.Error("the socket is left")
	}
	end = answerForDocker(version.Version{Minor: 24}, "unix://"+path, node.Silent{})
	if !host.Absent(path) {
		t.Error("answers a kubelet that does not ask")
	}
	end()
}
