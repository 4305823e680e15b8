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
	agent "github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
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
	// failed is set for the undo of a phase that failed, in place of a rollback.
	failed bool
}

// came reports whether the moment has come with the last of a journal's records. A step with nothing to do on this node has one record for
// before and after, and the start of the rollback is taken for its undo.
func (m moment) came(records []journal.Record) bool {
	skipped := false
	for _, r := range records {
		skipped = skipped || r.Step == m.step && r.Kind == journal.KindSkipped
		if r.Step == m.step && r.Kind == m.kind {
			return true
		}
		if skipped && (m.kind != journal.KindReverting || r.Kind == journal.KindOpen && r.Phase == protocol.PhaseRollback) {
			return true
		}
	}
	return false
}

func (m moment) String() string {
	where := ""
	if m.kind == journal.KindReverting {
		where = "in rollback, "
		if m.failed {
			where = "in the undo of a phase that failed, "
		}
	}
	switch {
	case m.late > 0 && where != "":
		return fmt.Sprintf("%s%s after the undo of %s began", where, m.late, m.step)
	case m.late > 0:
		return fmt.Sprintf("%s after %s began", m.late, m.step)
	case m.kind == journal.KindDone:
		return "after " + m.step
	case where != "":
		return where + "before " + m.step + " is undone"
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
	// killsPlugin has the plugin killed, before strike happens, if there is one.
	killsPlugin bool
	// outcome is how the host ends the cutover by itself, with the plugin dead, before anyone types another command.
	outcome protocol.Outcome
	// args are added to the command.
	args []string
}

func (x cell) String() string {
	if x.at.step == "" {
		return x.what
	}
	return fmt.Sprintf("%s | %s", x.what, x.at)
}

// inRollback reports whether it happens to a rollback from a finished switch.
func (x cell) inRollback() bool { return x.at.kind == journal.KindReverting && !x.at.failed }

// fastCell is that of every run of the end-to-end tests of a profile.
func fastCell(profile string) cell {
	if profile == lab.Dockershim {
		return cell{what: "power cut", at: before("kubelet-config"), strike: cutPower}
	}
	return cell{what: "SIGKILL of the agent", at: before("docker-stop"), strike: killAgent}
}

// allCells are those of the whole matrix: each step of the agent's own list, before it, after it, and before a rollback undoes it; moments
// of a cutover, of the steps that write most and of their undo, wherever it is by then; and what else can go wrong.
func allCells(profile string) []cell {
	cells := append([]cell{{what: "nothing"}}, otherCells()...)
	list := steps.List(&agent.Host{})
	for _, phase := range []protocol.Phase{protocol.PhasePrepare, protocol.PhaseCutover} {
		for _, step := range list[phase] {
			for _, kind := range []journal.Kind{journal.KindIntent, journal.KindDone, journal.KindReverting} {
				cells = append(cells, deaths(moment{kind: kind, step: step.ID()})...)
			}
			for _, kind := range []journal.Kind{journal.KindIntent, journal.KindReverting} {
				cells = append(cells, cell{what: "power cut, and again in the recovery", at: moment{kind: kind, step: step.ID()}, strike: cutPowerTwice})
			}
		}
	}
	cells = append(cells, midway("kubelet-stop", journal.KindIntent, 300, 700, 1200, 1800, 2500, 3300)...)
	cells = append(cells, midway("images", journal.KindIntent, 100, 300, 700, 1500)...)
	cells = append(cells, midway("images", journal.KindReverting, 100, 300)...)
	if hasAgentCNI(profile) {
		cells = append(cells, agentCells()...)
	}
	return cells
}

// agentCells are for a network that needs its own agent on the node: it dies where CNI DEL is about to run, and no kubelet starts it again.
func agentCells() []cell {
	killAgent := kill("cni-needs-agent", "serve")
	return []cell{
		{what: "SIGKILL of the CNI's agent", at: before("docker-pods"), strike: killAgent},
		{what: "SIGKILL of the CNI's agent", at: moment{kind: journal.KindReverting, step: "kubelet-start"}, strike: killAgent},
	}
}

// midway are deaths some milliseconds after a record.
func midway(step string, kind journal.Kind, milliseconds ...time.Duration) []cell {
	var cells []cell
	for _, late := range milliseconds {
		cells = append(cells, deaths(moment{kind: kind, step: step, late: late * time.Millisecond})...)
	}
	return cells
}

// installCells are those of nodes whose containerd is too old, so that packages are kept, installed and brought back.
func installCells() []cell {
	const step = "containerd-install"
	cells := []cell{{what: "nothing"}, {what: "power cut while dpkg unpacks", at: before(step), strike: cutPowerUnderDpkg}}
	for _, kind := range []journal.Kind{journal.KindIntent, journal.KindReverting} {
		cells = append(cells, deaths(moment{kind: kind, step: step})...)
		cells = append(cells, cell{what: "power cut, and again in the recovery", at: moment{kind: kind, step: step}, strike: cutPowerTwice})
		cells = append(cells, midway(step, kind, 300, 800, 1500, 3000)...)
	}
	return append(cells, deaths(moment{kind: journal.KindDone, step: step})...)
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
		{
			what: "containerd hangs", at: moment{kind: journal.KindReverting, step: "images", failed: true}, strike: hang("containerd"),
			setup: "echo '" + brokenNetwork + "' > " + brokenConf, cleanup: "rm -f " + brokenConf,
		},
		{what: "containerd hangs", at: before("smoke-test"), strike: hang("containerd")},
		{what: "containerd hangs", at: before("kubelet-start"), strike: hang("containerd")},
		{what: "containerd hangs", at: before("node-ready"), strike: hang("containerd")},
		{what: "kubelet crash-loops on containerd", setup: refuseContainerd, cleanup: acceptContainerd},
		{
			what: "SIGKILL of the plugin, power cut, and the kubelet does not start on containerd any more", at: moment{kind: journal.KindDone, step: "kubelet-start"},
			killsPlugin: true, strike: cutPowerForKubelet, cleanup: acceptContainerd, outcome: protocol.OutcomeRolledBack, args: []string{"--cutover-timeout", "2m"},
		},
		{what: "the Job's container dies, and Docker does not notice", at: before("containerd-config"), strike: onNode(killUnnoticed)},
	}
	for _, step := range []string{"kubelet-stop", "kubelet-start"} {
		cells = append(cells, cell{what: "API server away until the cutover ends", at: before(step), strike: withoutAPIServer, alone: true})
	}
	return cells
}

// killUnnoticed ends the container of the Job's pod, and its shim, while containerd is down: Docker goes on saying that it runs. It fails if
// Docker does not.
const killUnnoticed = `set -e
id=$(docker ps -q --no-trunc --filter label=io.kubernetes.pod.namespace=kubectl-runtime --filter label=io.kubernetes.docker.type=container | head -n 1)
pid=$(docker inspect -f '{{.State.Pid}}' "$id")
shim=$(pgrep -f "containerd-shim.* -id $id")
systemctl kill --kill-who=main --signal=KILL containerd
kill -KILL $shim $pid
until systemctl -q is-active containerd && docker ps >/dev/null; do sleep 0.2; done
sleep 3
docker ps --no-trunc --filter status=running | grep -q "$id" || { echo "Docker has noticed: $(docker ps -a --filter id="$id" --format '{{.Status}}')"; exit 1; }`

// A pod network that no sandbox can be given.
const (
	brokenConf    = "/etc/cni/net.d/00-broken.conflist"
	brokenNetwork = `{"cniVersion":"0.4.0","name":"broken","plugins":[{"type":"bridge","bridge":"cni9","ipam":{"type":"host-local","ranges":[[{"subnet":"10.99.0.0/33"}]]}}]}`
)

// A kubelet that refuses to start as soon as anything names containerd's endpoint.
const (
	refuseContainerd = "mkdir -p $(dirname " + refusal + ") && printf '" + refusingKubelet + "' > " + refusal + " && systemctl daemon-reload"
	acceptContainerd = "rm -f " + refusal + "; rmdir --ignore-fail-on-non-empty $(dirname " + refusal + "); systemctl daemon-reload"

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

// cutPower has a node lose what it has not synced, and boot again.
func cutPower(ctx context.Context, c *cluster, node string) error {
	if err := c.PowerOff(node); err != nil {
		return err
	}
	return c.Boot(ctx, node)
}

// cutPowerTwice cuts the power again with the first record that the agent writes after the boot.
func cutPowerTwice(ctx context.Context, c *cluster, node string) error {
	if err := c.PowerOff(node); err != nil {
		return err
	}
	records, err := c.records(node, c.currentRun(node))
	if err != nil {
		return err
	}
	if err := c.Boot(ctx, node); err != nil {
		return err
	}
	if closed(protocol.PhaseRollback)(records) {
		return nil // the first cut came after the last record: nothing is resumed
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := c.waitRecord(ctx, node, "", func(now []journal.Record) bool { return len(now) > len(records) }); err != nil {
		return fmt.Errorf("the agent did not resume after the first power cut: %w", err)
	}
	return cutPower(ctx, c, node)
}

// cutPowerForKubelet has a kubelet that came up on containerd not do so after a power cut.
func cutPowerForKubelet(ctx context.Context, c *cluster, node string) error {
	if err := onNode(refuseContainerd)(ctx, c, node); err != nil {
		return err
	}
	if err := onNode("sync "+refusal+" "+filepath.Dir(refusal))(ctx, c, node); err != nil {
		return err
	}
	return cutPower(ctx, c, node)
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
	waiting := c.waitRecord(ctx, node, "", closed(protocol.PhaseCutover))
	if err := c.StartAPIServer(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	return waiting
}

// closed reports whether a phase has ended.
func closed(phase protocol.Phase) func([]journal.Record) bool {
	return func(records []journal.Record) bool {
		return slices.ContainsFunc(records, func(r journal.Record) bool { return r.Kind == journal.KindClose && r.Phase == phase })
	}
}

// waitRecord waits until the journal of a run other than before has the wanted records.
func (c *cluster) waitRecord(ctx context.Context, node, before string, wanted func([]journal.Record) bool) error {
	seen := ""
	for {
		if run := c.currentRun(node); run != "" && run != before {
			if info, err := os.Stat(c.journal(node, run)); err == nil && seen != fmt.Sprint(run, info.Size()) {
				seen = fmt.Sprint(run, info.Size())
				if records, err := c.records(node, run); err == nil && wanted(records) {
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (c *cluster) journal(node, run string) string {
	return filepath.Join(c.Root(node), agentDir, "runs", run, journal.FileName)
}

// records are those of a run's journal, but for a line that is not whole.
func (c *cluster) records(node, run string) ([]journal.Record, error) {
	data, err := os.ReadFile(c.journal(node, run))
	if err != nil {
		return nil, err
	}
	var records []journal.Record
	for line := range strings.Lines(string(data)) {
		var r journal.Record
		if json.Unmarshal([]byte(line), &r) == nil {
			records = append(records, r)
		}
	}
	return records, nil
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
