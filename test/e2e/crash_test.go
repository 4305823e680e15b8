package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
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
	for _, way := range []struct {
		name, profile string
		cells         []cell
		// prepare is done to each node before the first cell.
		prepare func(*testing.T, *cluster, []string)
	}{
		{lab.Dockershim, lab.Dockershim, allCells(lab.Dockershim), nil},
		{lab.CRIDockerd, lab.CRIDockerd, allCells(lab.CRIDockerd), nil},
		{lab.Dockershim + "-install", lab.Dockershim, installCells(), upgradable},
	} {
		t.Run(way.name, func(t *testing.T) {
			wanted := regexp.MustCompile(os.Getenv(someCells))
			cells := slices.DeleteFunc(way.cells, func(x cell) bool { return !wanted.MatchString(x.String()) })
			m := &matrix{cells: cells, table: openTable(t, way.name)}
			if m.untried() == 0 {
				t.Skipf("all %d cells have passed before: %s", len(cells), m.table.path)
			}
			m.cluster = up(t, way.profile, nodes+1)
			if way.prepare != nil {
				way.prepare(t, m.cluster, m.Nodes()[:nodes])
			}
			m.deploy(t)
			m.run(t, m.Nodes()[:nodes]...)
			t.Logf("%d of %d cells:\n%s", len(m.cells)-m.untried(), len(m.cells), m.table)
		})
	}
}

// upgradable gives nodes a containerd that is too old, and a repository with a newer one and the way back.
func upgradable(t *testing.T, c *cluster, nodes []string) {
	deb := debs(t, "containerd/bookworm", "runc/bookworm", "containerd/bullseye")
	all := serve(t, deb["containerd/bookworm"], deb["runc/bookworm"], deb["containerd/bullseye"])
	for _, node := range nodes {
		c.oldContainerd(t, node, deb["containerd/bullseye"])
		c.use(t, node, all)
	}
}

// testCrash is the fast part of the matrix, on one node.
func (c *cluster) testCrash(t *testing.T, profile string) {
	m := &matrix{cluster: c, cells: []cell{fastCell(profile)}, table: &table{}}
	m.run(t, "node-1")
	t.Logf("\n%s", m.table)
}

// matrix runs cells: each has something die on the way to containerd or back, and demands that the node ends on one runtime in whole, by
// itself, that one more `switch` ends on containerd, and that `rollback` brings every file back.
type matrix struct {
	*cluster
	cells []cell
	table *table
}

// trial is one switch of a node there and back, with a cell on each way. The zero cell is one in which nothing happens.
type trial struct{ there, back cell }

// trials pairs the cells that have not passed yet. Cells that other nodes would feel come last, on their own.
func (m *matrix) trials() (list, alone []trial) {
	var there, back []cell
	for _, x := range m.cells {
		switch {
		case m.table.passed(x):
		case x.alone:
			alone = append(alone, trial{there: x})
		case x.inRollback():
			back = append(back, x)
		default:
			there = append(there, x)
		}
	}
	for i := range max(len(there), len(back)) {
		var next trial
		if i < len(there) {
			next.there = there[i]
		}
		if i < len(back) {
			next.back = back[i]
		}
		list = append(list, next)
	}
	return list, alone
}

func (m *matrix) untried() int {
	return len(slices.DeleteFunc(slices.Clone(m.cells), m.table.passed))
}

// run works on the nodes at the same time. A node on which a cell failed is left as it is, since the next cells would fail because of it.
func (m *matrix) run(t *testing.T, nodes ...string) {
	todo, alone := m.trials()
	queue := make(chan trial, len(todo))
	for _, next := range todo {
		queue <- next
	}
	close(queue)
	var mu sync.Mutex
	var whole []*worker
	var workers sync.WaitGroup
	for _, node := range nodes {
		w := &worker{matrix: m, node: node, files: m.fingerprint(t, node), packages: m.packages(t, node), data: m.exec(t, node, "cat /var/lib/lab-data/first")}
		if err := m.Sync(node); err != nil {
			t.Fatal(err)
		}
		workers.Go(func() {
			for next := range queue {
				if !t.Run(w.node+" "+next.String(), func(t *testing.T) { w.try(t, next) }) {
					return
				}
			}
			mu.Lock()
			defer mu.Unlock()
			whole = append(whole, w)
		})
	}
	workers.Wait()
	for _, next := range alone {
		if len(whole) == 0 || !t.Run(whole[0].node+" "+next.String(), func(t *testing.T) { whole[0].try(t, next) }) {
			break
		}
	}
	if untried := m.untried(); untried > 0 {
		t.Errorf("%d cell(s) failed or were not tried", untried)
	}
}

func (x trial) String() string {
	return strings.Join(slices.DeleteFunc([]string{x.there.String(), x.back.String()}, func(s string) bool { return s == "" }), ", then ")
}

// worker tries cells on one node.
type worker struct {
	*matrix
	node string
	// files and packages are those before any switch, switched the files on containerd.
	files, packages, switched string
	data                      string
}

// try has what is wrong after the way back count against both cells, since either may be the cause.
func (w *worker) try(t *testing.T, x trial) {
	var rows []row
	defer func() {
		for _, r := range rows {
			if r.cell.String() == "" {
				continue
			}
			if t.Failed() || r.then == "" {
				r.then = failedCell
			}
			if err := w.table.add(r); err != nil {
				t.Error(err)
			}
		}
	}()
	way := func(x cell, try func(*testing.T, cell) (outcome, then string)) {
		started := time.Now()
		rows = append(rows, row{cell: x})
		r := &rows[len(rows)-1]
		r.outcome, r.then = try(t, x)
		r.took = time.Since(started)
	}
	way(x.there, w.trySwitch)
	if !t.Failed() {
		way(x.back, w.tryRollback)
	}
}

// tryRollback has the cell happen on the way back from a finished switch.
func (w *worker) tryRollback(t *testing.T, x cell) (outcome, then string) {
	r, struck := w.under(t, x, "", "rollback", w.node, "--yes", "--image", agentImage, "--delete-emptydir-data")
	t.Logf("%s%s[exit %d]", r.stderr, r.stdout, r.code)
	if struck != nil {
		t.Errorf("nothing happened: %v", struck)
	}
	if r.code != 0 {
		t.Errorf("rollback: exit %d", r.code)
		w.diagnose(t)
	}
	w.checkBack(t, w.node, w.files)
	if now := w.cluster.packages(t, w.node); now != w.packages {
		t.Errorf("packages were\n%s\nand are\n%s", w.packages, now)
	}
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
	if x.outcome != "" {
		w.endsByItself(t, x.outcome)
	}
	switch {
	case x.outcome != "":
		outcome, then = "killed", "on Docker by itself"
	case r.code == 0:
		then = "on containerd"
	case x.killsPlugin:
		outcome, then = "killed", "second `switch` went on"
	case r.code == 2 || r.code == 4:
		then = "on Docker"
		w.onDocker(t)
	default:
		t.Errorf("switch: exit %d", r.code)
		w.diagnose(t)
	}
	if x.cleanup != "" {
		w.exec(t, w.node, x.cleanup)
	}
	if r.code != 0 {
		run := w.currentRun(w.node)
		if x.killsPlugin {
			w.waitClaim(t)
		}
		if x.outcome != "" { // which the next command reports
			w.switchNode(t, 4, w.node, "--soak", "0s", "--delete-emptydir-data")
			w.onDocker(t)
		}
		w.switchNode(t, 0, w.node, "--soak", "0s", "--delete-emptydir-data")
		if now := w.currentRun(w.node); x.killsPlugin && x.outcome == "" && now != run {
			t.Errorf("the second switch began run %s and did not resume %s", now, run)
		}
		if strings.HasPrefix(then, "on Docker") {
			then += ", second `switch` to containerd"
		}
	}
	w.checkSwitched(t)
	return outcome, then
}

// endsByItself waits until the host has ended its cutover with nobody to ask, and checks that the node serves.
func (w *worker) endsByItself(t *testing.T, want protocol.Outcome) {
	t.Helper()
	run := w.currentRun(w.node)
	eventually(t, 5*time.Minute, func() string {
		records, err := w.records(w.node, run)
		if err != nil {
			return err.Error()
		}
		if result, ok := engine.Result(records, protocol.PhaseCutover); !ok {
			return "the cutover is still open"
		} else if result.Outcome != want {
			t.Fatalf("the cutover ended as %+v, want %s", result, want)
		}
		return ""
	})
	eventually(t, 2*time.Minute, func() string {
		if n := w.cluster.node(t, w.node); !n.ready() || !strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, "docker://") {
			return fmt.Sprintf("ready %t, runtime %s", n.ready(), n.Status.NodeInfo.ContainerRuntimeVersion)
		}
		return ""
	})
	w.noTasks(t, w.node)
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
	args := []string{"switch", w.node, "--yes", "--image", agentImage, "--soak", "0s", "--delete-emptydir-data"}
	return w.under(t, x, w.currentRun(w.node), append(args, x.args...)...)
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
		err := w.waitRecord(ctx, w.node, before, x.at.came)
		time.Sleep(x.at.late)
		if err == nil && x.killsPlugin {
			end()
		}
		if err == nil && x.strike != nil {
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
