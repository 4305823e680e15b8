package e2e

import (
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

// TestLostLab starts a lab where one was lost: its processes are gone, while state, mounts, bridge and cgroups are still there.
func TestLostLab(t *testing.T) {
	lost := up(t, lab.Dockershim, 1)
	if err := lost.KillAll(); err != nil {
		t.Fatal(err)
	}
	up(t, lab.Dockershim, 1)
}
