package steps

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRemoveDockerLogLinks(t *testing.T) {
	dir := t.TempDir()
	logs := filepath.Join(dir, "ns_pod_uid", "app")
	if err := os.MkdirAll(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/var/lib/docker/containers/x/x-json.log", filepath.Join(logs, "0.log")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(logs, "1.log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeDockerLogLinks(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(logs)
	if err != nil || len(left) != 1 || left[0].Name() != "1.log" {
		t.Errorf("%v %v", left, err)
	}
}
