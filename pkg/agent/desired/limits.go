package desired

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
)

// podLimits are the limits of processes in pods that are kept as they are on Docker. Neither Docker nor CRI sets any by itself: a container
// inherits those of its shim, that is of the containerd that started it. proc is the name in /proc/PID/limits, unit systemd's.
var podLimits = []struct{ name, proc, unit string }{
	{"nofile", "Max open files", "LimitNOFILE"},
	{"nproc", "Max processes", "LimitNPROC"},
	{"core", "Max core file size", "LimitCORE"},
	{"memlock", "Max locked memory", "LimitMEMLOCK"},
}

// unlimited is translate.Limit's.
const unlimited = -1

// higher compares limits.
func higher(a, b int64) bool { return a != b && (a == unlimited || b != unlimited && a > b) }

// ShowLimit is a limit for people, as ulimit has it.
func ShowLimit(l translate.Limit) string {
	text := func(n int64) string {
		if n == unlimited {
			return "unlimited"
		}
		return strconv.FormatInt(n, 10)
	}
	if l.Soft == l.Hard {
		return text(l.Hard)
	}
	return text(l.Soft) + ":" + text(l.Hard)
}

// LimitsOf reads those of a running process.
func LimitsOf(proc string, pid int) ([]translate.Limit, error) {
	data, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "limits"))
	if err != nil {
		return nil, fmt.Errorf("read limits of process %d: %w", pid, err)
	}
	var limits []translate.Limit
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		for _, of := range podLimits {
			rest, ok := strings.CutPrefix(lines.Text(), of.proc+" ")
			fields := strings.Fields(rest)
			if !ok || len(fields) < 2 {
				continue
			}
			soft, hard, err := limitPair(fields[0], fields[1])
			if err != nil {
				return nil, fmt.Errorf("read limits of process %d: %s: %w", pid, of.proc, err)
			}
			limits = append(limits, translate.Limit{Name: of.name, Soft: soft, Hard: hard})
		}
	}
	return limits, nil
}

func limitPair(soft, hard string) (s, h int64, err error) {
	if s, err = parseLimit(soft); err != nil {
		return 0, 0, err
	}
	h, err = parseLimit(hard)
	return s, h, err
}

// parseLimit reads what the kernel or systemd writes.
func parseLimit(text string) (int64, error) {
	if text == "unlimited" || text == "infinity" {
		return unlimited, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, err
	}
	if n > math.MaxInt64 {
		return unlimited, nil
	}
	return int64(n), nil
}

// unitLimits are those with which systemd would start a service now.
func unitLimits(ctx context.Context, h *node.Host, unit string, lacksResource bool) ([]translate.Limit, error) {
	var names []string
	for _, of := range podLimits {
		names = append(names, of.unit, of.unit+"Soft")
	}
	p, err := h.Systemd.Show(ctx, unit, names...)
	if err != nil {
		return nil, err
	}
	var most []translate.Limit
	if lacksResource { // then systemd has to make do with its own
		if most, err = LimitsOf(node.Proc, 1); err != nil {
			return nil, err
		}
	}
	var limits []translate.Limit
	for _, of := range podLimits {
		hardText, softText := p[of.unit], p[of.unit+"Soft"]
		if hardText == "" {
			continue
		}
		if softText == "" { // before version 228
			softText = hardText
		}
		soft, hard, err := limitPair(softText, hardText)
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", of.unit, unit, err)
		}
		bound := int64(unlimited)
		if of.name == "nofile" {
			if bound, err = maxOpenFiles(); err != nil {
				return nil, err
			}
		}
		if at := slices.IndexFunc(most, func(l translate.Limit) bool { return l.Name == of.name }); at >= 0 && higher(bound, most[at].Hard) {
			bound = most[at].Hard
		}
		for _, limit := range []*int64{&soft, &hard} {
			if higher(*limit, bound) {
				*limit = bound
			}
		}
		limits = append(limits, translate.Limit{Name: of.name, Soft: soft, Hard: hard})
	}
	return limits, nil
}

// maxOpenFiles is what the kernel makes of an infinite limit of open files.
func maxOpenFiles() (int64, error) {
	data, err := os.ReadFile(filepath.Join(node.Proc, "sys/fs/nr_open"))
	if err != nil {
		return 0, err
	}
	return parseLimit(strings.TrimSpace(string(data)))
}

// LimitsCarried are what containers on containerd need a base spec for.
type LimitsCarried struct {
	Limits []translate.Limit
	// Cannot are sentences on limits that cannot be kept.
	Cannot []string
}

// add compares a pod's limits on Docker with those of containerd.service. shared: the pod's shim is of that same containerd.
func (c *LimitsCarried) add(pods, unit []translate.Limit, shared, lacksResource bool) {
	for _, pod := range pods {
		of := func(l translate.Limit) bool { return l.Name == pod.Name }
		at := slices.IndexFunc(unit, of)
		if at < 0 || slices.ContainsFunc(c.Limits, of) {
			continue
		}
		will := unit[at]
		same := pod == will
		if pod.Name == "nofile" {
			// A Go program raises its soft limit to the hard one, and one built with Go up to 1.19.8 passes that on to what it starts. The same
			// containerd goes on doing as it does.
			same = pod.Hard == will.Hard && (shared || pod.Soft == will.Soft && will.Soft == will.Hard)
		}
		if same {
			continue
		}
		if lacksResource && higher(pod.Hard, will.Hard) {
			c.Cannot = append(c.Cannot, fmt.Sprintf("%s is %s in Docker's pods and will be %s: this host lacks CAP_SYS_RESOURCE, without which a runtime cannot raise it", pod.Name, ShowLimit(pod), ShowLimit(will)))
			continue
		}
		c.Limits = append(c.Limits, pod)
	}
}

// LimitsToCarry are Docker's default-ulimits, and what else of a Docker pod's limits containers of containerd.service would not have.
func LimitsToCarry(ctx context.Context, h *node.Host, found facts.Found) (LimitsCarried, error) {
	carried := LimitsCarried{Limits: slices.Clone(found.Docker.Ulimits)}
	if len(found.PodLimits) == 0 || !WillRun(ctx, h, found) {
		return carried, nil
	}
	unit, err := unitLimits(ctx, h, node.ContainerdUnit, found.RestrictOOM)
	if err != nil {
		return carried, err
	}
	carried.add(found.PodLimits, unit, !found.PrivateContainerd && found.Install == nil, found.RestrictOOM)
	return carried, nil
}

// DifferingLimits are sentences on what the rehearsal's container has for other limits than a Docker pod.
func DifferingLimits(pods []translate.Limit, p cri.Processes) ([]string, error) {
	container, err := LimitsOf(node.Proc, p.Container)
	if err != nil {
		return nil, err
	}
	sandbox, err := LimitsOf(node.Proc, p.Sandbox)
	if err != nil {
		return nil, err
	}
	var differ []string
	for _, pod := range pods {
		of := func(l translate.Limit) bool { return l.Name == pod.Name }
		at, inherited := slices.IndexFunc(container, of), slices.IndexFunc(sandbox, of)
		if at < 0 || inherited < 0 {
			continue
		}
		has := container[at]
		if pod.Name == "nofile" {
			// The agent is such a program, too: its soft limit is what was set for it, or else what the pause program inherited, too.
			has.Soft = sandbox[inherited].Soft
			if set, ok := p.Rlimits["RLIMIT_NOFILE"]; ok {
				has.Soft = int64(min(set.Soft, math.MaxInt64)) //nolint:gosec // bounded
			}
		}
		if has != pod {
			differ = append(differ, fmt.Sprintf("%s is %s in Docker's pods, and %s in containerd's", pod.Name, ShowLimit(pod), ShowLimit(has)))
		}
	}
	return differ, nil
}
