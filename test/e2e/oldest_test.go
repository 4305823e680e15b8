package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

// TestOldest goes there and back on nodes of Kubernetes 1.20, whose API server has none of the APIs that came with 1.21 and 1.22.
func TestOldest(t *testing.T) {
	if os.Getenv("KUBECTL_RUNTIME_OLDEST") == "" {
		t.Skip("SKIPPED: needs builds of its own: run `make e2e-oldest`")
	}
	c := up(t, lab.Oldest, 2)
	c.deploy(t)
	files := c.fingerprint(t, "node-1")
	data := c.exec(t, "node-1", "cat /var/lib/lab-data/first")
	if r := c.runtime(t, 0, "status"); !strings.Contains(r.stdout, "v1.20.15") {
		t.Errorf("status does not show the kubelet's version:\n%s", r.stdout)
	}
	c.runtime(t, 0, "plan", "node-1", "--image", agentImage, "--delete-emptydir-data", "--force")

	c.switchNode(t, 0, "node-1", "--delete-emptydir-data", "--verify-images")
	c.onContainerd(t, "node-1", false)
	c.waitPods(t)
	if now := c.exec(t, "node-1", "cat /var/lib/lab-data/first"); now != data {
		t.Errorf("data was %q and is %q", data, now)
	}
	c.nothingLeft(t, "node-1")

	c.rollback(t, "node-1", files)
}
