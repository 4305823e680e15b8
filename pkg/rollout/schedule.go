package rollout

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
)

// Phase is where a node of a rollout is.
type Phase int

// The phases. A node whose drain was blocked goes back from InFlight to Waiting.
const (
	Waiting Phase = iota
	InFlight
	Ended
)

// Result is how the work on a node ended.
type Result string

// The results.
const (
	// Done: the node was moved. Skipped: there was nothing to do, or it cannot be moved as it is. Both leave it as it should be.
	Done    Result = "done"
	Skipped Result = "skipped"
	// Blocked: pods that their PodDisruptionBudgets held back kept the node from being drained. It serves as before.
	Blocked Result = "blocked"
	// Refused, Failed, TimedOut and RolledBack are failures after which the node serves as before.
	Refused    Result = "refused"
	Failed     Result = "failed"
	TimedOut   Result = "timed-out"
	RolledBack Result = "rolled-back"
	// Stuck: the node is left out of service, and a person is needed.
	Stuck Result = "stuck"
	// Interrupted: the user ended it.
	Interrupted Result = "interrupted"
	// Postponed: nothing was done, and the node waits for another turn. No node ends with it.
	Postponed Result = "postponed"
)

// failed reports whether a result counts against Limits.MaxFailures.
func (r Result) failed() bool {
	switch r {
	case Refused, Failed, TimedOut, RolledBack, Stuck:
		return true
	case Done, Skipped, Blocked, Interrupted, Postponed:
	}
	return false
}

// Member is a selected node as the scheduler sees it.
type Member struct {
	Name         string
	ControlPlane bool
	// Resumes: an earlier run is to be resumed.
	Resumes bool
	Phase   Phase
	// Result and Reason are those of an Ended node. Reason is what failures have in common, without what is particular to the node.
	Result Result
	Reason string
	// Attempts is how often the node was started.
	Attempts int
	// Out is why the node does not serve, "" if it does: "cordoned", say. Gone is why it is no longer the node that was selected.
	Out, Gone string
}

// unavailable is why a node counts against the budget, or "". A node in flight counts once, whatever else it is.
func (m *Member) unavailable() string {
	switch {
	case m.Phase == InFlight:
		return "in flight"
	case m.Gone != "":
		return ""
	case m.Phase == Ended && m.Result == Stuck:
		return cmp.Or(m.Out, "failed")
	default:
		return m.Out
	}
}

// outOfService reports whether an earlier run has taken the node out of service already: it is resumed, whatever the limits say.
func (m *Member) outOfService() bool {
	return m.Phase == Waiting && m.Resumes && m.Attempts == 0 && m.Out != ""
}

// Limits bound a rollout.
type Limits struct {
	MaxUnavailable Budget
	// MaxFailures is the number of failed nodes that stops new starts.
	MaxFailures int
	// DrainAttempts is how often a node is started whose drain is blocked.
	DrainAttempts int
}

// sameFailures stops a rollout: what failed in the same way so often is not the nodes' fault.
const sameFailures = 3

// Decision is what a rollout does next.
type Decision struct {
	// Start are the nodes that start now.
	Start []string
	// Skip are waiting nodes that are no longer those that were selected.
	Skip []string
	// Stopped is why no other node starts any more, Wait why none starts now although some wait. Both are empty while nodes start.
	Stopped, Wait string
	// Over: nothing is in flight, and nothing will start.
	Over bool
}

// Orders are what people want of a rollout while it runs.
type Orders struct {
	// Stop is why no node is to start any more, Hold why none is to start for now. Empty, nodes start.
	Stop, Hold string
}

// Next decides what starts now. It is a pure function: members are in the order in which they start, others are the slots of other rollouts. A node in flight
// is never stopped by it.
func Next(members []Member, limits Limits, others []Slot, orders Orders) Decision {
	var d Decision
	s := survey(members, limits, others)
	d.Stopped = cmp.Or(orders.Stop, s.stop(limits))
	waiting := false
	for i := range members {
		if m := &members[i]; m.outOfService() && m.Gone == "" && orders == (Orders{}) && s.worker(m.Name) == "" {
			d.Start = append(d.Start, m.Name)
			s.started(m)
		}
	}
	for i := range members {
		m := &members[i]
		switch {
		case m.Phase != Waiting || slices.Contains(d.Start, m.Name):
		case m.Gone != "":
			d.Skip = append(d.Skip, m.Name)
		case d.Stopped != "":
		default:
			if why := cmp.Or(orders.Hold, s.whyNot(m)); why != "" {
				d.Wait, waiting = cmp.Or(d.Wait, why), true
				continue
			}
			d.Start = append(d.Start, m.Name)
			s.started(m)
		}
	}
	d.Over = s.inFlight == 0 && !waiting
	return d
}

// view is a rollout in numbers.
type view struct {
	budget, inFlight, done, failures int
	// control is how many nodes of the control plane are in flight.
	control int
	// out are the nodes that count against the budget, "node-1 (cordoned)".
	out []string
	// workers are those that wait. controlOut are nodes of the control plane that count against the budget.
	workers    int
	controlOut []string
	stuck      string
	reasons    map[string]int
	// others are the slots of other rollouts, by node.
	others map[string]Slot
}

func survey(members []Member, limits Limits, others []Slot) *view {
	v := &view{budget: limits.MaxUnavailable.Of(len(members)), reasons: map[string]int{}, others: map[string]Slot{}}
	for _, slot := range others {
		v.others[slot.Node] = slot
	}
	counted := map[string]bool{}
	for i := range members {
		m := &members[i]
		if why := m.unavailable(); why != "" {
			counted[m.Name] = true
			v.out = append(v.out, m.Name+" ("+why+")")
			if m.ControlPlane {
				v.controlOut = append(v.controlOut, m.Name)
			}
		}
		switch m.Phase {
		case InFlight:
			v.inFlight++
			if m.ControlPlane {
				v.control++
			}
		case Waiting:
			if !m.ControlPlane && m.Gone == "" {
				v.workers++
			}
		case Ended:
			v.ended(m)
		}
	}
	for _, slot := range others {
		if counted[slot.Node] {
			continue
		}
		why := "in flight"
		if slot.idle {
			why = "left out of service"
		}
		v.out = append(v.out, slot.Node+" ("+why+", by "+slot.Person()+")")
		if slot.ControlPlane {
			v.controlOut = append(v.controlOut, slot.Node)
		}
	}
	return v
}

func (v *view) ended(m *Member) {
	if m.Result == Done {
		v.done++
	}
	if m.Result == Stuck {
		v.stuck = cmp.Or(v.stuck, m.Name)
	}
	if m.Result.failed() {
		v.failures++
		v.reasons[string(m.Result)+": "+m.Reason]++
	}
}

// stop is why no node may start any more.
func (v *view) stop(limits Limits) string {
	if v.stuck != "" {
		return fmt.Sprintf("node %s is left out of service and needs a person", v.stuck)
	}
	if v.failures >= limits.MaxFailures {
		return fmt.Sprintf("%s failed, and --max-failures is %d", nodes(v.failures), limits.MaxFailures)
	}
	for reason, times := range v.reasons {
		if times >= sameFailures {
			return fmt.Sprintf("%s failed in the same way: %s", nodes(times), reason)
		}
	}
	return ""
}

// started counts a node that starts now.
func (v *view) started(m *Member) {
	v.inFlight++
	if m.ControlPlane {
		v.control++
	}
	if m.Out == "" {
		v.out = append(v.out, m.Name+" (in flight)")
	}
	if m.ControlPlane && !slices.Contains(v.controlOut, m.Name) {
		v.controlOut = append(v.controlOut, m.Name)
	}
	if !m.ControlPlane {
		v.workers--
	}
}

// whyNot says why a waiting node does not start now; "" if it starts.
func (v *view) whyNot(m *Member) string {
	width := window(v.done)
	if who := v.worker(m.Name); who != "" {
		return fmt.Sprintf("%s is at work on %s", who, m.Name)
	}
	switch others := without(v.controlOut, m.Name); {
	case v.control > 0 && !m.ControlPlane: // one that an earlier run has taken out of service; it may be the only one
		return "a control-plane node moves alone"
	case m.ControlPlane && v.workers > 0:
		return "control-plane nodes come after all others"
	case m.ControlPlane && len(others) > 0:
		return "control-plane nodes move one at a time, and " + some(others) + " is unavailable"
	case m.ControlPlane && (v.inFlight > 0 || len(v.elsewhere(m.Name)) > 0):
		return "a control-plane node moves alone: " + some(v.out)
	case !m.ControlPlane && len(v.controlElsewhere()) > 0:
		return "a control-plane node is in flight: " + some(v.controlElsewhere())
	case m.Out == "" && !v.hasSlot(m.Name) && len(v.out) >= v.budget: // one that counts already makes nothing worse
		return fmt.Sprintf("at most %s may be unavailable, and %d already: %s", nodes(v.budget), len(v.out), some(v.out))
	case v.inFlight >= width:
		return fmt.Sprintf("%s at a time, until %d have moved", nodes(width), 2*width)
	}
	return ""
}

// worker is who else is at work on a node, or was until a moment ago, "" if nobody is.
func (v *view) worker(node string) string {
	if slot, taken := v.others[node]; taken && !slot.idle {
		return slot.Person()
	}
	return ""
}

func (v *view) hasSlot(node string) bool { _, taken := v.others[node]; return taken }

// elsewhere are the nodes that other rollouts have in flight, but for one.
func (v *view) elsewhere(but string) []string {
	return without(slices.Sorted(maps.Keys(v.others)), but)
}

func (v *view) controlElsewhere() []string {
	return slices.DeleteFunc(v.elsewhere(""), func(node string) bool { return !v.others[node].ControlPlane })
}

// window is how many nodes may be in flight at a time after some have moved well: one, one, two, four, and so on.
func window(done int) int {
	if done < 1 {
		return 1
	}
	return 1 << (bits.Len(uint(done)) - 1)
}

// maxNamed bounds how many nodes a sentence names.
const maxNamed = 5

func some(names []string) string {
	if more := len(names) - maxNamed; more > 0 {
		return strings.Join(names[:maxNamed], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

func without(names []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
}

func nodes(count int) string {
	if count == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", count)
}
