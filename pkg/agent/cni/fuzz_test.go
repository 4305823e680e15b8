package cni

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// TestOddConfigurations: an unusable file is passed over, whatever it holds.
func TestOddConfigurations(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "20-good.conf"), []byte(`{"cniVersion":"0.4.0","name":"good","type":"bridge"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"10-odd.conflist", "10-odd.conf", "10-odd.json"} {
		odd := filepath.Join(dir, name)
		agenttest.TryOddFiles(t, func(data []byte) {
			if err := os.WriteFile(odd, data, 0o600); err != nil {
				t.Error(err)
			}
			if network, err := Detect(dir, ""); err != nil || network.Name != "good" {
				t.Errorf("%s: %+v, %v", name, network.File, err)
			}
		})
		if err := os.Remove(odd); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"bridge","ipam":{"type":"host-local"}}]}`), true)
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","type":"flannel"}`), false)
	f.Add([]byte("\ufeff{\"plugins\":[{}],\"name\":[]}"), true)
	f.Fuzz(func(t *testing.T, data []byte, isList bool) {
		list, err := parseList(data, isList)
		if err == nil {
			_ = plugins(list)
		}
	})
}
