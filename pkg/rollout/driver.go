package rollout

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
)

// lookInterval is how often the driver looks at the nodes although none has changed.
const lookInterval = 5 * time.Second

// Cluster is what the driver knows of the cluster's nodes.
type Cluster interface {
	// Node is a node as it was reported last; nil if the cluster does not have it.
	Node(name string) *corev1.Node
	// Changed is closed when a node changes after this call.
	Changed() <-chan struct{}
}

// Shared are the slots that the rollouts of a cluster have in common.
type Shared interface {
	// Change is as of Slots.
	Change(ctx context.Context, ended map[string]bool, fresh bool, choose func(others []Slot) []Slot) error
}

// Record is what others see of a rollout while it runs, and where they say what they want of it.
type Record interface {
	// Note notes where the nodes are, and why none starts. If some start with that, it notes it only if nobody is against that at that moment. Fresh
	// asks what people want also where there is nothing to note. Orders are those that hold then.
	Note(ctx context.Context, members []Member, wait string, starts, fresh bool) (Orders, error)
}

// End is how the work on a node ended. Reason is a Member's.
type End struct {
	Result Result
	Reason string
	// Left: the node may be out of service, or another run has it. It counts for all rollouts until it serves.
	Left bool
}

// Work is what a rollout does.
type Work interface {
	// Move does the work on one node. It is called for several nodes at once.
	Move(ctx context.Context, node string) End
	// The others are called by one goroutine. Ended gets what became of a node that was started, or is skipped without that; Again, one that went to the
	// end of the queue. Waits is called when the reason changes why no node starts, although none is in flight or since people want that; it is empty once
	// one starts.
	Ended(node string, end End)
	Again(node string, end End)
	Waits(why string)
}

// Selected is a node of a rollout.
type Selected struct {
	Node *corev1.Node
	// Todo: the node is to be moved; else it only counts against the budget. Resumes is as of Member.
	Todo, Resumes bool
}

// Driver moves nodes, several at a time.
type Driver struct {
	Limits  Limits
	Cluster Cluster
	Work    Work
	Clock   clock.WithTicker
	Shared  Shared
	// Record is nil for a rollout that nobody else sees.
	Record Record

	members []Member
	uids    map[string]types.UID
	wait    string
	// missing are skipped workers that were not Ready when the rollout began and have not been since: the cluster was without them before, so that they
	// do not count.
	missing map[string]bool
	// others are the slots of other rollouts as they were at asked; release are the nodes whose work has ended since, true for those that are left.
	others  []Slot
	asked   time.Time
	release map[string]bool
	failure error
	// orders are as of Record, read at noted.
	orders Orders
	noted  time.Time
}

// Summary is what became of a rollout.
type Summary struct {
	Members []Member
	// Stopped is why nodes were left that did not start, or ""; Err, what failed of the rollout itself.
	Stopped string
	Err     error
}

// Run moves the selected nodes in the order in which they are given, but for those that an earlier run has taken out of service: these are first. It
// returns when all is over. Once ctx has ended, no node starts, and those in flight are waited for: their context has ended, too.
func (d *Driver) Run(ctx context.Context, selected []Selected) Summary {
	d.take(selected)
	ended := make(chan moved)
	ticker := d.Clock.NewTicker(lookInterval)
	defer ticker.Stop()
	cancelled := ctx.Done()
	for {
		changed := d.Cluster.Changed()
		next := d.decide(ctx)
		for _, name := range next.Skip {
			d.end(name, End{Result: Skipped, Reason: d.member(name).Gone})
		}
		for _, name := range next.Start {
			m := d.member(name)
			m.Phase, m.Attempts = InFlight, m.Attempts+1
		}
		d.tellWait(next) // before the first word of a node that starts
		for _, name := range next.Start {
			go func() { ended <- moved{name, d.Work.Move(ctx, name)} }()
		}
		if next.Over {
			return Summary{Members: d.members, Stopped: next.Stopped, Err: d.failure}
		}
		select {
		case m := <-ended:
			d.moved(m)
		case <-changed:
		case <-ticker.C():
		case <-cancelled:
			cancelled = nil
		}
	}
}

// noteTimeout bounds a change of the slots or of the record, also once the rollout was interrupted: the slots of nodes that serve again are given back.
const noteTimeout = 30 * time.Second

// decide finds out what starts now, takes the slots for that, and notes it in the record.
func (d *Driver) decide(ctx context.Context) Decision {
	for {
		next := d.choose(ctx)
		if d.Record == nil || d.note(ctx, &next) {
			return next
		}
	}
}

// choose finds out what starts now, and takes the slots for that.
func (d *Driver) choose(ctx context.Context) (next Decision) {
	orders := d.orders
	switch {
	case d.failure != nil:
		orders.Stop = d.failure.Error()
	case ctx.Err() != nil:
		orders.Stop = "interrupted"
	}
	choose := func(others []Slot) []Slot {
		d.look()
		d.others = others
		next = Next(d.members, d.Limits, others, orders)
		var slots []Slot
		for _, name := range next.Start {
			slots = append(slots, Slot{Node: name, ControlPlane: d.member(name).ControlPlane})
		}
		return slots
	}
	choose(d.others)
	now := d.Clock.Now()
	// Who waits for others learns of their changes only by asking.
	asks := len(d.others) > 0 && next.Wait != "" && now.Sub(d.asked) >= lookInterval
	if len(next.Start)+len(d.release) == 0 && !asks {
		return next
	}
	d.asked = now
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	if err := d.Shared.Change(ctx, d.release, asks, choose); err != nil {
		d.failed(err, &next)
		return next
	}
	clear(d.release)
	return next
}

// failed has nothing start: what has to be written before that could not be written.
func (d *Driver) failed(err error, next *Decision) {
	if !nodejob.IsTransient(err) {
		d.failure = err
	}
	if len(next.Start) > 0 {
		next.Start, next.Wait, next.Over = nil, err.Error(), false
	}
}

// note notes what is decided in the record. It is false if people want something else meanwhile, so that it has to be decided again.
func (d *Driver) note(ctx context.Context, next *Decision) bool {
	members := slices.Clone(d.members)
	for i := range members {
		if slices.Contains(next.Start, members[i].Name) {
			members[i].Phase = InFlight
		}
	}
	now := d.Clock.Now()
	waits := slices.ContainsFunc(members, func(m Member) bool { return m.Phase == Waiting })
	fresh := waits && next.Stopped == "" && now.Sub(d.noted) >= lookInterval
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	orders, err := d.Record.Note(ctx, members, next.Wait, len(next.Start) > 0, fresh)
	if err == nil && orders == d.orders {
		if fresh {
			d.noted = now
		}
		return true
	}
	for _, name := range next.Start { // none of them starts
		d.release[name] = false
	}
	if err != nil {
		d.failed(err, next)
		return true
	}
	d.orders, d.noted = orders, now
	return false
}

type moved struct {
	node string
	end  End
}

// take makes members of the selected nodes.
func (d *Driver) take(selected []Selected) {
	d.uids, d.release, d.missing = map[string]types.UID{}, map[string]bool{}, map[string]bool{}
	for _, s := range selected {
		m := Member{Name: s.Node.Name, ControlPlane: IsControlPlane(s.Node), Resumes: s.Resumes}
		if !s.Todo {
			m.Phase, m.Result = Ended, Skipped
			d.missing[m.Name] = !m.ControlPlane && !isReady(s.Node)
		}
		d.members = append(d.members, m)
		d.uids[m.Name] = s.Node.UID
	}
}

func (d *Driver) member(name string) *Member {
	return &d.members[slices.IndexFunc(d.members, func(m Member) bool { return m.Name == name })]
}

// look notes what the cluster says of the nodes now.
func (d *Driver) look() {
	for i := range d.members {
		m := &d.members[i]
		node := d.Cluster.Node(m.Name)
		switch {
		case node == nil:
			m.Gone = "it is no longer in the cluster"
		case node.UID != d.uids[m.Name]:
			m.Gone = "it was deleted and created again since the rollout began"
		default:
			m.Gone, m.Out = "", Unavailable(node)
			if d.missing[m.Name] = d.missing[m.Name] && !isReady(node); d.missing[m.Name] {
				m.Out = ""
			}
		}
	}
}

// moved takes what became of a node in flight.
func (d *Driver) moved(m moved) {
	d.look()
	member := d.member(m.node)
	d.release[m.node] = m.end.Left || m.end.Result == Stuck
	switch {
	case member.Gone != "" && m.end.Result != Done && m.end.Result != Interrupted:
		d.end(m.node, End{Result: Skipped, Reason: member.Gone})
	case m.end.Result == Postponed, m.end.Result == Blocked && member.Attempts < d.Limits.DrainAttempts:
		// To the end of the queue: what holds it back may be gone by then.
		last := *member
		if m.end.Result == Postponed {
			last.Attempts--
		}
		last.Phase = Waiting
		d.members = append(slices.DeleteFunc(d.members, func(other Member) bool { return other.Name == m.node }), last)
		d.Work.Again(m.node, m.end)
	default:
		d.end(m.node, m.end)
	}
}

func (d *Driver) end(name string, end End) {
	m := d.member(name)
	m.Phase, m.Result, m.Reason = Ended, end.Result, end.Reason
	d.Work.Ended(name, end)
}

// tellWait reports why no node starts, where that is all that happens.
func (d *Driver) tellWait(next Decision) {
	why := next.Wait
	inFlight := slices.ContainsFunc(d.members, func(m Member) bool { return m.Phase == InFlight })
	if next.Over || inFlight && d.orders.Hold == "" {
		why = ""
	}
	if why != d.wait {
		d.wait = why
		d.Work.Waits(why)
	}
}

// Unavailable says why a node does not serve; "" if it does.
func Unavailable(node *corev1.Node) string {
	switch {
	case node.DeletionTimestamp != nil:
		return "being deleted"
	case node.Spec.Unschedulable:
		return "cordoned"
	}
	if !isReady(node) {
		return "NotReady"
	}
	return ""
}

func isReady(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}
