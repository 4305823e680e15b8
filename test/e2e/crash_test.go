package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/steps"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

// fullMatrix asks for every cell of the crash matrix; `make crash-matrix` sets it.
const fullMatrix = "KUBECTL_RUNTIME_CRASH_MATRIX"

// crash is one cell of the matrix: what dies, when the journal gets a record of this kind for this step.
type crash struct {
	step, record string
	power        bool // the whole node, else the agent alone
}

func (x crash) String() string {
	what := "SIGKILL of the agent"
	if x.power {
		what = "power cut"
	}
	return fmt.Sprintf("%s at %s of %s", what, x.record, x.step)
}

// crashes are all cells, made from the agent's own list of steps, or a few of them.
func crashes() []crash {
	if os.Getenv(fullMatrix) == "" {
		return []crash{{"docker-stop", "intent", false}, {"kubelet-config", "intent", true}}
	}
	var all []crash
	for _, step := range steps.List(&steps.Host{})[protocol.PhaseCutover] {
		for _, record := range []string{"intent", "done"} {
			all = append(all, crash{step.ID(), record, false}, crash{step.ID(), record, true})
		}
	}
	return all
}

// TestCrashMatrix is the whole matrix on one profile after the other.
func TestCrashMatrix(t *testing.T) {
	if os.Getenv(fullMatrix) == "" {
		t.Skip("SKIPPED: takes an hour: run `make crash-matrix`; TestDockershim and TestCRIDockerd have a few of its cells")
	}
	for _, profile := range []string{lab.Dockershim, lab.CRIDockerd} {
		t.Run(profile, func(t *testing.T) {
			c := up(t, profile)
			c.deploy(t)
			c.testCrashes(t)
		})
	}
}

// testCrashes switches node-1 once for each cell, has it die on the way, and demands that it ends on containerd: by itself, or with
// one more `switch` where it went back. In between the node is rolled back.
func (c *cluster) testCrashes(t *testing.T) {
	files := c.fingerprint(t, "node-1")
	data := c.exec(t, "node-1", "cat /var/lib/lab-data/first")
	var table []string
	for _, cell := range crashes() {
		t.Run(strings.ReplaceAll(cell.String(), " ", "_"), func(t *testing.T) {
			died := c.dieAt(t, cell)
			r := c.run(t, "runtime", "switch", "node-1", "--yes", "--image", agentImage, "--soak", "0s")
			t.Logf("%s%s[exit %d]", r.stderr, r.stdout, r.code)
			if err := <-died; err != nil {
				t.Fatalf("nothing died: %v", err)
			}
			outcome := "went on"
			if r.code != 0 {
				outcome = fmt.Sprintf("exit %d, second switch", r.code)
				c.switchNode(t, 0, "node-1", "--soak", "0s")
			}
			table = append(table, fmt.Sprintf("%-45s %s", cell, outcome))
			c.onContainerd(t, "node-1", false)
			c.waitPods(t)
			c.nothingLeft(t)
			if now := c.exec(t, "node-1", "cat /var/lib/lab-data/first"); now != data {
				t.Errorf("data was %q and is %q", data, now)
			}
			c.rollback(t, files)
		})
	}
	t.Logf("crash matrix, every cell on containerd in the end, and rolled back byte for byte:\n%s", strings.Join(table, "\n"))
}

// rollback takes node-1 back to Docker and checks that its files are as they were.
func (c *cluster) rollback(t *testing.T, files string) {
	t.Helper()
	c.runtime(t, 0, "rollback", "node-1", "--yes", "--image", agentImage)
	n := c.node(t, "node-1")
	if !n.ready() || n.Spec.Unschedulable || !strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, "docker://") {
		t.Errorf("after rollback: ready %t, unschedulable %t, runtime %s", n.ready(), n.Spec.Unschedulable, n.Status.NodeInfo.ContainerRuntimeVersion)
	}
	if now := c.fingerprint(t, "node-1"); now != files {
		t.Errorf("after rollback files differ\nbefore:\n%s\nnow:\n%s", files, now)
	}
	if out := c.exec(t, "node-1", "ctr -n k8s.io tasks ls -q"); out != "" {
		t.Errorf("after rollback containers run under containerd: %s", out)
	}
	c.waitPods(t)
	c.nothingLeft(t)
}

// dieAt has the agent or the node die once the journal of the run that comes next has the cell's record. The channel gets one error,
// nil after it died (and, for a node, was booted again).
func (c *cluster) dieAt(t *testing.T, cell crash) <-chan error {
	t.Helper()
	kill := "true"
	if !cell.power {
		kill = `kill -9 $(systemctl show -p MainPID --value kubectl-runtime.service)`
	}
	const dir = "/var/lib/kubectl-runtime"
	before := c.exec(t, "node-1", "readlink "+dir+"/current || true")
	script := fmt.Sprintf(`for i in $(seq 9000); do
		[ "$(readlink %[1]s/current)" != "%[2]s" ] && grep -qs '"kind":"%[3]s".*"step":"%[4]s"' %[1]s/current/journal.jsonl && { %[5]s; exit; }
		sleep 0.01; done; exit 1`, dir, before, cell.record, cell.step, kill)
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Minute)
	go func() {
		defer cancel()
		_, err := c.Exec(ctx, "node-1", "sh", "-c", script)
		if err == nil && cell.power {
			if err = c.PowerOff("node-1"); err == nil {
				err = c.Boot(ctx, "node-1")
			}
		}
		done <- err
	}()
	return done
}
