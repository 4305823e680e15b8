package steps

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
)

// freshRenewals are how often the kubelet's Lease has to be renewed under our eyes to show that the kubelet reports. It renews every 10 s and sends the
// node's status at its start and every 10 s where that changes (pkg/kubelet/kubelet_node_status.go): between two renewals it had the time to do so.
const freshRenewals = 2

// freshness decides whether what the API server shows of the node comes from the kubelet process that runs now. What an earlier process has sent, also
// in an earlier boot, stays in the API server and proves nothing.
type freshness struct {
	// bootID is this boot's, empty where it is not known.
	bootID string

	process  time.Duration // the kubelet's start that the renewals belong to
	renewed  time.Time
	renewals int
}

func newFreshness() *freshness {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		id = nil // the times alone then decide
	}
	return &freshness{bootID: strings.TrimSpace(string(id))}
}

// check returns an error as long as node may come from an earlier kubelet. started is when the kubelet that runs now was started, in time since the boot,
// and zero if none runs; uptime is the time since the boot, and now the time of day.
//
// A status counts that was sent in this boot, after the kubelet's start and not in the future. All are times of this node, so that they can
// be compared while nobody sets the clock. After the clock was set, they cannot, and a clock that is behind after a reboot makes an old
// status look new. Then only what changes while it is watched counts: the Lease, which is compared with nothing but itself.
func (f *freshness) check(node kubelet.Node, started, uptime time.Duration, now time.Time) error {
	if started == 0 {
		f.renewed, f.renewals = node.Renewed, 0
		return fmt.Errorf("the kubelet does not run")
	}
	switch {
	case started != f.process:
		f.process, f.renewed, f.renewals = started, node.Renewed, 0
	case !node.Renewed.Equal(f.renewed):
		f.renewed = node.Renewed
		f.renewals++
	}
	start := timeOfDay(started, uptime, now)
	sameBoot := f.bootID == "" || node.BootID == "" || node.BootID == f.bootID
	if sameBoot && !node.Reported.Before(start.Truncate(time.Second)) && !node.Reported.After(now) || f.renewals >= freshRenewals {
		return nil
	}
	return fmt.Errorf("the kubelet that was started at %s has not reported the node yet: the last report is of %s",
		start.UTC().Format(time.RFC3339), node.Reported.UTC().Format(time.RFC3339))
}

// timeOfDay is a time since the boot on the clock as it is set now.
func timeOfDay(at, uptime time.Duration, now time.Time) time.Time {
	return now.Add(at - uptime)
}

// uptime is the time since the boot on the clock that systemd's monotonic timestamps are of.
func uptime() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("read the time since the boot: %w", err)
	}
	return time.Duration(now.Nano()), nil
}
