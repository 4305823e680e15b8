package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

const (
	// fullMatrix asks for every cell of the crash matrix; `make crash-matrix` sets it.
	fullMatrix = "KUBECTL_RUNTIME_CRASH_MATRIX"
	// someCells is a regular expression for the names of the cells that are wanted; all by default.
	someCells = "KUBECTL_RUNTIME_CRASH_CELLS"
	// nodesAtOnce is how many nodes are worked on at the same time; one more takes what is drained.
	nodesAtOnce = "KUBECTL_RUNTIME_CRASH_NODES"
	// matrixNodes is the default.
	matrixNodes = 3
)

// TestCrashMatrix is the whole matrix on one profile after the other. Its tables go to bin/crash-matrix-PROFILE.md.
func TestCrashMatrix(t *testing.T) {
	if os.Getenv(fullMatrix) == "" {
		t.Skip("SKIPPED: takes hours: run `make crash-matrix`; TestDockershim and TestCRIDockerd have a cell of it each")
	}
	nodes := matrixNodes
	if text := os.Getenv(nodesAtOnce); text != "" {
		var err error
		if nodes, err = strconv.Atoi(text); err != nil || nodes < 1 {
			t.Fatalf("%s=%q: want a number of nodes", nodesAtOnce, text)
		}
	}
	for _, profile := range []string{lab.Dockershim, lab.CRIDockerd} {
		t.Run(profile, func(t *testing.T) {
			c := up(t, profile, nodes+1)
			c.deploy(t)
			wanted := regexp.MustCompile(os.Getenv(someCells))
			cells := slices.DeleteFunc(allCells(), func(x cell) bool { return !wanted.MatchString(x.String()) })
			m := &matrix{cluster: c, cells: cells, path: filepath.Join("../../bin", "crash-matrix-"+profile+".md")}
			m.run(t, c.Nodes()[:nodes]...)
			t.Logf("%d of %d cells:\n%s", len(m.rows), len(m.cells), m.table())
		})
	}
}

// testCrash is the fast part of the matrix, on one node.
func (c *cluster) testCrash(t *testing.T, profile string) {
	m := &matrix{cluster: c, cells: []cell{fastCell(profile)}}
	m.run(t, "node-1")
	t.Logf("\n%s", m.table())
}

// matrix runs cells: each switches a node once, has something die on the way there or back, and demands that the node ends on one runtime
// in whole, by itself, that one more `switch` ends on containerd, and that `rollback` brings every file back.
type matrix struct {
	*cluster
	cells []cell
	// path is where the table is written after each cell, if set.
	path string

	mu   sync.Mutex
	rows []string
}

// run works on the nodes at the same time; cells that several nodes would feel come last, one by one. A node on which a cell failed is
// left as it is, since the next cells would fail because of it.
func (m *matrix) run(t *testing.T, nodes ...string) {
	var todo, alone []cell
	for _, x := range m.cells {
		if x.alone {
			alone = append(alone, x)
		} else {
			todo = append(todo, x)
		}
	}
	next := func() (x cell, ok bool) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if ok = len(todo) > 0; ok {
			x, todo = todo[0], todo[1:]
		}
		return x, ok
	}
	var whole []*worker
	var workers sync.WaitGroup
	for _, node := range nodes {
		w := &worker{matrix: m, node: node, files: m.fingerprint(t, node), data: m.exec(t, node, "cat /var/lib/lab-data/first")}
		workers.Go(func() {
			for x, ok := next(); ok; x, ok = next() {
				if !t.Run(w.node+" "+x.String(), func(t *testing.T) { w.try(t, x) }) {
					return
				}
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			whole = append(whole, w)
		})
	}
	workers.Wait()
	for _, x := range alone {
		if len(whole) == 0 || !t.Run(whole[0].node+" "+x.String(), func(t *testing.T) { whole[0].try(t, x) }) {
			break
		}
	}
	if untried := len(m.cells) - len(m.rows); untried > 0 {
		t.Errorf("%d cell(s) were not tried", untried)
	}
}

// add adds a cell's row to the table.
func (m *matrix) add(t *testing.T, row string) {
	t.Helper()
	m.mu.Lock()
	m.rows = append(m.rows, row)
	m.mu.Unlock()
	if m.path == "" {
		return
	}
	if err := os.WriteFile(m.path, []byte(m.table()), 0o644); err != nil {
		t.Error(err)
	}
}

func (m *matrix) table() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return "| what | when | command | then | took |\n|---|---|---|---|---|\n" + strings.Join(slices.Sorted(slices.Values(m.rows)), "")
}

// worker tries cells on one node.
type worker struct {
	*matrix
	node string
	// files are those before any switch, switched those on containerd.
	files, switched string
	data            string
}

func (w *worker) try(t *testing.T, x cell) {
	started := time.Now()
	try := w.trySwitch
	if x.inRollback() {
		try = w.tryRollback
	}
	outcome, then := "", "FAILED"
	defer func() {
		if t.Failed() {
			then = "FAILED"
		}
		what, when, _ := strings.Cut(x.String(), " | ")
		w.add(t, fmt.Sprintf("| %s | %s | %s | %s | %d s |\n", what, when, outcome, then, int(time.Since(started).Seconds())))
	}()
	outcome, then = try(t, x)
}

// tryRollback has the cell happen on the way back from a finished switch.
func (w *worker) tryRollback(t *testing.T, x cell) (outcome, then string) {
	w.switchNode(t, 0, w.node, "--soak", "0s", "--delete-emptydir-data")
	w.checkSwitched(t)
	r, struck := w.under(t, x, "", "rollback", w.node, "--yes", "--image", agentImage, "--delete-emptydir-data")
	t.Logf("%s%s[exit %d]", r.stderr, r.stdout, r.code)
	if struck != nil {
		t.Errorf("nothing happened: %v", struck)
	}
	if r.code != 0 {
		t.Errorf("rollback: exit %d", r.code)
	}
	w.checkBack(t, w.node, w.files)
	return fmt.Sprintf("exit %d", r.code), "on Docker"
}

// trySwitch has the cell happen to a switch.
func (w *worker) trySwitch(t *testing.T, x cell) (outcome, then string) {
	if x.setup != "" {
		w.exec(t, w.node, x.setup)
	}
	r, struck := w.switchUnder(t, x)
	t.Logf("%s%s[exit %d]", r.stderr, r.stdout, r.code)
	if struck != nil {
		t.Errorf("nothing happened: %v", struck)
	}
	outcome = fmt.Sprintf("exit %d", r.code)
	switch {
	case r.code == 0:
		then = "on containerd"
	case x.killsPlugin:
		outcome, then = "killed", "second `switch` went on"
	case r.code == 2 || r.code == 4:
		then = "on Docker"
		w.onDocker(t)
	default:
		t.Errorf("switch: exit %d", r.code)
	}
	if x.cleanup != "" {
		w.exec(t, w.node, x.cleanup)
	}
	if r.code != 0 {
		run := w.currentRun(w.node)
		if x.killsPlugin {
			w.waitClaim(t)
		}
		w.switchNode(t, 0, w.node, "--soak", "0s", "--delete-emptydir-data")
		if now := w.currentRun(w.node); x.killsPlugin && now != run {
			t.Errorf("the second switch began run %s and did not go on with %s", now, run)
		}
		if then == "on Docker" {
			then += ", second `switch` to containerd"
		}
	}
	w.checkSwitched(t)
	w.rollback(t, w.node, w.files)
	return outcome, then
}

// waitClaim waits until the claim of a plugin that was killed has expired; until then a switch says who holds the node.
func (w *worker) waitClaim(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, func() string {
		var lease struct{ Spec struct{ RenewTime time.Time } }
		if err := json.Unmarshal([]byte(w.kubectl(t, "-n", nodejob.Namespace, "get", "lease", w.node, "-o", "json")), &lease); err != nil {
			t.Fatal(err)
		}
		if age := time.Since(lease.Spec.RenewTime); age < 61*time.Second {
			return fmt.Sprintf("the claim was renewed %s ago", age.Round(time.Second))
		}
		return ""
	})
}

// switchUnder switches the node while the cell happens. The error says that it did not.
func (w *worker) switchUnder(t *testing.T, x cell) (result, error) {
	t.Helper()
	return w.under(t, x, w.currentRun(w.node), "switch", w.node, "--yes", "--image", agentImage, "--soak", "0s", "--delete-emptydir-data")
}

// under types a command while the cell happens to a run other than before. The error says that it did not.
func (w *worker) under(t *testing.T, x cell, before string, args ...string) (result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	plugin, end := context.WithCancel(ctx)
	defer end()
	struck := make(chan error, 1)
	go func() {
		if x.at.step == "" {
			struck <- nil
			return
		}
		err := w.waitRecord(ctx, w.node, before, x.at.came())
		time.Sleep(x.at.late)
		switch {
		case err != nil:
		case x.killsPlugin:
			end()
		default:
			err = x.strike(ctx, w.cluster, w.node)
		}
		struck <- err
	}()
	r := w.start(plugin, t, append([]string{"runtime"}, args...)...)
	select {
	case err := <-struck:
		return r, err
	case <-time.After(time.Minute):
		cancel()
		return r, errors.Join(errors.New("the command ended before its moment came"), <-struck)
	}
}

// onDocker checks that the node is on Docker as it was.
func (w *worker) onDocker(t *testing.T) {
	t.Helper()
	n := w.cluster.node(t, w.node)
	if !n.ready() || n.Spec.Unschedulable || !strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, "docker://") {
		t.Errorf("ready %t, unschedulable %t, runtime %s", n.ready(), n.Spec.Unschedulable, n.Status.NodeInfo.ContainerRuntimeVersion)
	}
	w.noTasks(t, w.node)
	w.waitPodsOn(t, w.node)
}

// checkSwitched checks that the node is on containerd in whole: files as after a switch that nothing disturbed, pods, data.
func (w *worker) checkSwitched(t *testing.T) {
	t.Helper()
	w.onContainerd(t, w.node, false)
	w.waitPodsOn(t, w.node)
	w.nothingLeft(t, w.node)
	if now := w.exec(t, w.node, "cat /var/lib/lab-data/first"); now != w.data {
		t.Errorf("data was %q and is %q", w.data, now)
	}
	now := w.fingerprint(t, w.node)
	if w.switched == "" {
		w.switched = now
	}
	if d := differences(w.switched, now); d != "" {
		t.Errorf("files differ from those of the first switch:\n%s", d)
	}
}

// rollback takes a node back to Docker.
func (c *cluster) rollback(t *testing.T, node, files string) {
	t.Helper()
	c.runtime(t, 0, "rollback", node, "--yes", "--image", agentImage, "--delete-emptydir-data")
	c.checkBack(t, node, files)
}

// checkBack checks that a rollback has brought the node back to Docker in whole.
func (c *cluster) checkBack(t *testing.T, node, files string) {
	t.Helper()
	n := c.node(t, node)
	if !n.ready() || n.Spec.Unschedulable || !strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, "docker://") {
		t.Errorf("after rollback: ready %t, unschedulable %t, runtime %s", n.ready(), n.Spec.Unschedulable, n.Status.NodeInfo.ContainerRuntimeVersion)
	}
	if d := differences(files, c.fingerprint(t, node)); d != "" {
		t.Errorf("after rollback files differ:\n%s", d)
	}
	c.noTasks(t, node)
	c.waitPodsOn(t, node)
	c.nothingLeft(t, node)
}

// noTasks checks that no container runs under containerd for Kubernetes.
func (c *cluster) noTasks(t *testing.T, node string) {
	t.Helper()
	if out := c.exec(t, node, "ctr -n k8s.io tasks ls 2>/dev/null | awk 'NR > 1 && $3 != \"STOPPED\"'"); out != "" {
		t.Errorf("on Docker containers run under containerd: %s", out)
	}
}
