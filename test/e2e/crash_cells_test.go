package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/steps"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

// moment is when the journal of a run gets a record: intent is before a step, done after it, reverting before a rollback undoes it.
type moment struct {
	kind journal.Kind
	step string
	// late is how long after the record the moment is: in the midst of a step.
	late time.Duration
}

// came returns what tells of each record of a journal, from the first on, whether the moment has come with it. A step with nothing to do
// on this node has one record for before and after, and the begin of the rollback stands for its undoing.
func (m moment) came() func(journal.Record) bool {
	skipped := false
	return func(r journal.Record) bool {
		skipped = skipped || r.Step == m.step && r.Kind == journal.KindSkipped
		if m.kind == journal.KindReverting {
			return r.Step == m.step && r.Kind == m.kind || skipped && r.Kind == journal.KindOpen && r.Phase == protocol.PhaseRollback
		}
		return skipped || r.Step == m.step && r.Kind == m.kind
	}
}

func (m moment) String() string {
	switch {
	case m.late > 0:
		return fmt.Sprintf("%s after %s began", m.late, m.step)
	case m.kind == journal.KindDone:
		return "after " + m.step
	case m.kind == journal.KindReverting:
		return "in rollback, before " + m.step + " is undone"
	}
	return "before " + m.step
}

// cell is one cell of the crash matrix: what happens, and when.
type cell struct {
	what string
	at   moment
	// strike makes it happen. The journal is that of the run under way.
	strike func(ctx context.Context, c *cluster, node string) error
	// setup and cleanup are shell lines for the node, before the switch and after it.
	setup, cleanup string
	// alone is set if other nodes feel it, too.
	alone bool
	// killsPlugin has the plugin killed instead.
	killsPlugin bool
}

func (x cell) String() string {
	if x.at.step == "" {
		return x.what
	}
	return fmt.Sprintf("%s | %s", x.what, x.at)
}

// inRollback reports whether it happens to a rollback from a finished switch.
func (x cell) inRollback() bool { return x.at.kind == journal.KindReverting }

// fastCell is that of every run of the end-to-end tests of a profile.
func fastCell(profile string) cell {
	if profile == lab.Dockershim {
		return cell{what: "power cut", at: before("kubelet-config"), strike: cutPower}
	}
	return cell{what: "SIGKILL of the agent", at: before("docker-stop"), strike: killAgent}
}

// allCells are those of the whole matrix: each step of the agent's own list, before it, after it, and before a rollback undoes it; moments
// of a cutover wherever it is by then; and what else can go wrong.
func allCells() []cell {
	cells := append([]cell{{what: "nothing"}}, otherCells()...)
	list := steps.List(&steps.Host{})
	for _, phase := range []protocol.Phase{protocol.PhasePrepare, protocol.PhaseCutover} {
		for _, step := range list[phase] {
			for _, kind := range []journal.Kind{journal.KindIntent, journal.KindDone, journal.KindReverting} {
				cells = append(cells, deaths(moment{kind: kind, step: step.ID()})...)
			}
		}
	}
	for _, late := range []time.Duration{300, 700, 1200, 1800, 2500, 3300} {
		cells = append(cells, deaths(moment{journal.KindIntent, "kubelet-stop", late * time.Millisecond})...)
	}
	return cells
}

// deaths are what has the agent end without a word.
func deaths(at moment) []cell {
	return []cell{{what: "SIGKILL of the agent", at: at, strike: killAgent}, {what: "power cut", at: at, strike: cutPower}}
}

func before(step string) moment { return moment{kind: journal.KindIntent, step: step} }

// otherCells are those that are not made from the list of steps.
func otherCells() []cell {
	full := func(dir, size string) (setup, cleanup string) {
		setup = fmt.Sprintf(`mkdir -p %[1]s /run/kept && cp -a %[1]s/. /run/kept && mount -t tmpfs -o mode=755,size=%[2]s tmpfs %[1]s && cp -a /run/kept/. %[1]s`, dir, size)
		cleanup = fmt.Sprintf(`rm -f %[1]s/filler; rm -rf /run/kept; cp -a %[1]s /run/kept; umount %[1]s; find %[1]s -mindepth 1 -delete; cp -a /run/kept/. %[1]s; rm -rf /run/kept`, dir)
		return setup, cleanup
	}
	fill := func(dir string) func(context.Context, *cluster, string) error {
		return onNode("dd if=/dev/zero of=" + dir + "/filler bs=4k 2>/dev/null; true")
	}
	journalSetup, journalCleanup := full("/var/lib/kubectl-runtime", "64m")
	unitsSetup, unitsCleanup := full("/etc/systemd/system", "16m")
	configSetup, configCleanup := full("/etc/containerd", "16m")
	// containerd has its files open; containers outlive its restart.
	imagesSetup, imagesCleanup := full("/var/lib/containerd", "2500m")
	imagesSetup, imagesCleanup = "systemctl stop containerd && "+imagesSetup+" && systemctl start containerd docker", "systemctl stop containerd; "+imagesCleanup+"; systemctl start containerd docker"
	cells := []cell{
		{what: "SIGKILL of the Job's pod", at: before("images"), strike: kill("runtime-agent", "supervise")},
		{what: "SIGKILL of dockerd", at: before("images"), strike: kill("dockerd")},
		{what: "SIGKILL of dockerd", at: before("docker-pods"), strike: kill("dockerd")},
		{what: "SIGKILL of containerd", at: before("rehearsal"), strike: kill("containerd")},
		{what: "SIGKILL of containerd", at: before("smoke-test"), strike: kill("containerd")},
		{what: "SIGKILL of containerd", at: before("kubelet-start"), strike: kill("containerd")},
		{what: "SIGKILL of containerd", at: before("node-ready"), strike: kill("containerd")},
		{what: "SIGKILL of the kubelet", at: before("images"), strike: kill("kubelet")},
		{what: "SIGKILL of the kubelet", at: before("kubelet-stop"), strike: kill("kubelet")},
		{what: "SIGKILL of the kubelet", at: before("node-ready"), strike: kill("kubelet")},
		{what: "SIGKILL of the plugin", at: before("images"), killsPlugin: true},
		{what: "SIGKILL of the plugin", at: before("docker-stop"), killsPlugin: true},
		{what: "SIGKILL of the plugin", at: moment{kind: journal.KindDone, step: "node-ready"}, killsPlugin: true},
		{what: "disk full: /var/lib/kubectl-runtime", at: before("images"), strike: fill("/var/lib/kubectl-runtime"), setup: journalSetup, cleanup: journalCleanup},
		{what: "disk full: /var/lib/kubectl-runtime", at: before("docker-stop"), strike: fill("/var/lib/kubectl-runtime"), setup: journalSetup, cleanup: journalCleanup},
		{what: "disk full: /var/lib/kubectl-runtime", at: before("kubelet-start"), strike: fill("/var/lib/kubectl-runtime"), setup: journalSetup, cleanup: journalCleanup},
		{what: "disk full: /etc/systemd/system", at: before("images"), strike: fill("/etc/systemd/system"), setup: unitsSetup, cleanup: unitsCleanup},
		{what: "disk full: /etc/systemd/system", at: before("docker-stop"), strike: fill("/etc/systemd/system"), setup: unitsSetup, cleanup: unitsCleanup},
		{what: "disk full: /etc/containerd", at: before("containerd-config"), strike: fill("/etc/containerd"), setup: configSetup, cleanup: configCleanup},
		{what: "disk full: /var/lib/containerd", at: before("images"), strike: fill("/var/lib/containerd"), setup: imagesSetup, cleanup: imagesCleanup},
		{what: "containerd hangs", at: before("images"), strike: hang("containerd")},
		{what: "containerd hangs", at: before("rehearsal"), strike: hang("containerd")},
		{what: "containerd hangs", at: before("smoke-test"), strike: hang("containerd")},
		{what: "containerd hangs", at: before("kubelet-start"), strike: hang("containerd")},
		{what: "containerd hangs", at: before("node-ready"), strike: hang("containerd")},
		{
			what: "kubelet crash-loops on containerd", setup: "mkdir -p " + filepath.Dir(refusal) + " && printf '" + refusingKubelet + "' > " + refusal + " && systemctl daemon-reload",
			cleanup: "rm " + refusal + " && systemctl daemon-reload",
		},
	}
	for _, step := range []string{"kubelet-stop", "kubelet-start"} {
		cells = append(cells, cell{what: "API server away until the cutover ends", at: before(step), strike: withoutAPIServer, alone: true})
	}
	return cells
}

// A kubelet that refuses to start as soon as anything names containerd's endpoint.
const (
	refusal         = "/etc/systemd/system/kubelet.service.d/99-refuse.conf"
	refusingKubelet = `[Service]\nExecStartPre=/bin/sh -c "! grep -qs containerd/containerd.sock /var/lib/kubelet/kubeadm-flags.env /var/lib/kubelet/config.yaml /var/lib/kubelet/instance-config.yaml"\n`
)

func killAgent(ctx context.Context, c *cluster, node string) error {
	return kill("runtime-agent", "run")(ctx, c, node)
}

// kill sends SIGKILL to a program of the node, or to that which has the given first argument.
func kill(program string, argument ...string) func(context.Context, *cluster, string) error {
	return signalTo(syscall.SIGKILL, program, argument...)
}

// hang stops a program without ending it, as a deadlock would.
func hang(program string) func(context.Context, *cluster, string) error {
	return signalTo(syscall.SIGSTOP, program)
}

func signalTo(sig syscall.Signal, program string, argument ...string) func(context.Context, *cluster, string) error {
	return func(_ context.Context, c *cluster, node string) error {
		n, err := c.Signal(node, sig, func(args []string) bool {
			return filepath.Base(args[0]) == program && len(args) > len(argument) && slices.Equal(args[1:1+len(argument)], argument)
		})
		if err == nil && n == 0 {
			err = fmt.Errorf("no %s runs on %s", program, node)
		}
		return err
	}
}

func cutPower(ctx context.Context, c *cluster, node string) error {
	if err := c.PowerOff(node); err != nil {
		return err
	}
	return c.Boot(ctx, node)
}

// onNode runs a shell line.
func onNode(line string) func(context.Context, *cluster, string) error {
	return func(ctx context.Context, c *cluster, node string) error {
		_, err := c.Exec(ctx, node, "sh", "-c", line)
		return err
	}
}

// withoutAPIServer takes the API server away until the cutover has ended, however it did.
func withoutAPIServer(ctx context.Context, c *cluster, node string) error {
	if err := c.StopAPIServer(); err != nil {
		return err
	}
	ended := func(r journal.Record) bool { return r.Kind == journal.KindClose && r.Phase == protocol.PhaseCutover }
	waiting := c.waitRecord(ctx, node, "", ended)
	if err := c.StartAPIServer(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	return waiting
}

// waitRecord waits until the journal of a run other than before has a record. match is asked of each record from the first on, again and again.
func (c *cluster) waitRecord(ctx context.Context, node, before string, match func(journal.Record) bool) error {
	for {
		if run := c.currentRun(node); run != "" && run != before {
			data, err := os.ReadFile(filepath.Join(c.Root(node), agentDir, "runs", run, journal.FileName))
			if err == nil && hasRecord(data, match) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

const agentDir = "var/lib/kubectl-runtime"

// currentRun is the ID of the run that is or was last open on a node.
func (c *cluster) currentRun(node string) string {
	link, err := os.Readlink(filepath.Join(c.Root(node), agentDir, "current"))
	if err != nil {
		return ""
	}
	return filepath.Base(link)
}

func hasRecord(data []byte, match func(journal.Record) bool) bool {
	for line := range strings.Lines(string(data)) {
		var r journal.Record
		if json.Unmarshal([]byte(line), &r) == nil && match(r) {
			return true
		}
	}
	return false
}
