package containerd_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// TestOddConfigs: whatever lies where containerd's config is looked for, the agent goes on, or refuses.
func TestOddConfigs(t *testing.T) {
	agenttest.TryOddFiles(t, func(data []byte) {
		_, _ = containerd.ReadLayout(data)
		_, _ = containerd.ReadImports("/nowhere/config.toml", data)
		_, _ = containerd.Render(data, settings)
		_, _ = containerd.ParseVersion(string(data))
		containerd.Registries("/d", nil, nil, containerd.HostFiles{"h": {"ca.crt": data}}, nil)
	})
}

// FuzzReadLayout: what Render accepts can be asked for its layout, which rendering does not move.
func FuzzReadLayout(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.in.toml")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("\ufeffroot = 1\nimports = [1]\n[grpc]\naddress = [[]]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = containerd.ReadImports("/nowhere/config.toml", data)
		before, err := containerd.ReadLayout(data)
		rendered, renderErr := containerd.Render(data, containerd.Settings{})
		if err != nil || renderErr != nil {
			return
		}
		after, err := containerd.ReadLayout(rendered)
		if err != nil || after.Root != before.Root || after.Address != before.Address {
			t.Fatalf("%+v became %+v (%v):\n%s\nthen\n%s", before, after, err, data, rendered)
		}
	})
}

// FuzzRegistries: whatever Docker's certs.d and its lists of registries hold, each hosts.toml is TOML.
func FuzzRegistries(f *testing.F) {
	f.Add("registry.example:5000", "https://mirror.example/x", "ca.crt", []byte("-----BEGIN CERTIFICATE-----\nYQ==\n-----END CERTIFICATE-----\n"))
	f.Add("[::1]:5000", "http://user:p%20w@m\x00", "client.cert", []byte("\ufeff\x00"))
	f.Add("a\"b\\", "://", "x\n.key", []byte{})
	f.Fuzz(func(t *testing.T, host, mirror, name string, content []byte) {
		docker := containerd.HostFiles{host: {name: content, "client.key": content}}
		files, _ := containerd.Registries("/d", []string{mirror}, []string{host}, docker, nil)
		for _, file := range files {
			var parsed map[string]any
			if filepath.Base(file.Path) != "hosts.toml" {
				continue
			}
			if err := toml.Unmarshal(file.Data, &parsed); err != nil {
				t.Fatalf("%s: %v\n%s", file.Path, err, file.Data)
			}
			if bytes.Contains(file.Data, []byte("\x00")) {
				t.Fatalf("%s holds NUL", file.Path)
			}
		}
	})
}

func FuzzParseVersion(f *testing.F) {
	for _, seed := range []string{"containerd github.com/containerd/containerd/v2 v2.4.2 abc", "containerd containerd.io 1.6.20~ds1", "containerd x v1.", "containerd x 99999999999999999999.1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if v, err := containerd.ParseVersion(line); err == nil && (v.Major < 0 || v.Minor < 0 || v.Patch < 0) {
			t.Fatalf("%q became %+v", line, v)
		}
	})
}
