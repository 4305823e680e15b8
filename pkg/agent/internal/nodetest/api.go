package nodetest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func Kubeconfig(t *testing.T, server string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubelet.conf")
	config := fmt.Sprintf("current-context: x\nclusters: [{name: c, cluster: {server: %s}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n"+
		"users: [{name: u, user: {token: t}}]\n", server)
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
