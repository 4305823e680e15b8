package rollout

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// member makes a Member from words: "a", "b*" in flight, "c!" cordoned, "d+" done, "e-" failed, "f#" stuck, "g?" gone, "h>" resumes, "cp-…" of the control
// plane.
func member(word string) Member {
	m := Member{Name: strings.TrimRight(word, "*!+-#?>"), Phase: Waiting}
	m.ControlPlane = strings.HasPrefix(m.Name, "cp")
	for _, sign := range word[len(m.Name):] {
		switch sign {
		case '*':
			m.Phase, m.Attempts = InFlight, 1
		case '!':
			m.Out = "cordoned"
		case '+':
			m.Phase, m.Result, m.Attempts = Ended, Done, 1
		case '-':
			m.Phase, m.Result, m.Reason, m.Attempts = Ended, RolledBack, "verify: no", 1
		case '#':
			m.Phase, m.Result, m.Attempts = Ended, Stuck, 1
		case '?':
			m.Gone = "gone"
		case '>':
			m.Resumes = true
		}
	}
	return m
}

func TestNext(t *testing.T) {
	for _, test := range []struct {
		name, members, budget string
		others                string
		failures              int
		stop, hold            string
		start, skip           string
		wait, stopped         string
		over                  bool
	}{
		{name: "the first is alone", members: "a b c d", budget: "4", start: "a", wait: "1 node at a time, until 2 have moved"},
		{name: "then one", members: "a+ b c d e", budget: "4", start: "b", wait: "1 node at a time"},
		{name: "then two", members: "a+ b+ c d e", budget: "4", start: "c d", wait: "2 nodes at a time, until 4 have moved"},
		{name: "then four, one in flight", members: "a+ b+ c+ d+ e* f g h i j", budget: "8", start: "f g h", wait: "4 nodes at a time"},
		{name: "the budget bounds it", members: "a+ b+ c+ d+ e f g h", budget: "3", start: "e f g", wait: "at most 3 nodes may be unavailable, and 3 already: e (in flight)"},
		{name: "percent", members: "a+ b+ c d e f g h i j", budget: "20%", start: "c d", wait: "at most 2 nodes"},
		{name: "percent is at least one", members: "a b", budget: "1%", start: "a", wait: "at most 1 node may"},
		{name: "in flight goes on", members: "a* b", budget: "1", wait: "at most 1 node may be unavailable, and 1 already: a (in flight)"},
		{name: "one in flight counts once", members: "a+ b+ c*! d e", budget: "2", start: "d", wait: "at most 2"},
		{name: "cordoned by somebody", members: "a+! b", budget: "1", wait: "a (cordoned)"},
		{name: "cordoned and to be moved", members: "a b!", budget: "1", start: "b", wait: "b (cordoned)"},
		{name: "failed and not restored", members: "a# b", budget: "5", failures: 9, stopped: "node a is left out of service and needs a person", over: true},
		{name: "failed", members: "a- b c", budget: "5", stopped: "1 node failed, and --max-failures is 1", over: true},
		{name: "failed, others in flight", members: "a- b* c", budget: "5", stopped: "1 node failed"},
		{name: "failures are allowed", members: "a- b- c d", budget: "5", failures: 3, start: "c", wait: "1 node at a time"},
		{name: "always the same", members: "a- b- c- d", budget: "5", failures: 9, stopped: "3 nodes failed in the same way: rolled-back: verify: no", over: true},
		{name: "gone", members: "a? b", budget: "1", skip: "a", start: "b"},
		{name: "gone in flight", members: "a*? b", budget: "1", wait: "a (in flight)"},
		{name: "gone and was cordoned", members: "a+!? b", budget: "1", start: "b"},
		{name: "resumes first", members: "a b c>! d>!", budget: "1", start: "c d", wait: "at most 1"},
		{name: "resumes although another failed", members: "a- b>!", budget: "1", start: "b", stopped: "1 node failed"},
		{name: "resumes in service", members: "a b>", budget: "1", start: "a", wait: "at most 1"},
		{name: "the control plane is last", members: "a+ b+ c cp-1", budget: "5", start: "c", wait: "a control-plane node"},
		{name: "the control plane waits for what waits", members: "a+ b+ cp-1 c!*", budget: "1", wait: "a control-plane node moves alone"},
		{name: "the control plane one at a time", members: "a+ b+ c+ d+ cp-1 cp-2", budget: "5", start: "cp-1", wait: "one at a time, and cp-1 is unavailable"},
		{name: "the control plane is not whole", members: "a+ cp-1 cp-2+!", budget: "5", wait: "cp-2 is unavailable"},
		{name: "the control plane's cordoned one first", members: "a+ cp-1 cp-2!", budget: "5", start: "cp-2", wait: "cp-2 is unavailable"},
		{name: "no worker beside the control plane", members: "a+ b+ c d cp-1>!", budget: "5", start: "cp-1", wait: "a control-plane node moves alone"},
		{name: "others count", members: "a+ b+ c d e", others: "x y", budget: "3", start: "c", wait: "x (in flight, by bob@desk), y"},
		{name: "others use it up", members: "a b", others: "x", budget: "1", wait: "at most 1 node may be unavailable, and 1 already: x (in flight, by bob@desk)"},
		{name: "another has the node", members: "a+ b+ c d e", others: "c", budget: "3", start: "d e", wait: "bob@desk is at work on c"},
		{name: "another left the node", members: "a c!", others: "c~", budget: "1", start: "c", wait: "c (cordoned)"},
		{name: "resumes what another left", members: "a c>!", others: "c~", budget: "1", start: "c", wait: "at most 1"},
		{name: "resumes nothing that another resumes", members: "a c>!", others: "c", budget: "1", wait: "at most 1"},
		{name: "left by others", members: "a b", others: "x~", budget: "1", wait: "x (left out of service, by bob@desk)"},
		{name: "the control plane is not beside another rollout's node", members: "a+ b+ cp-1", others: "x", budget: "5", wait: "a control-plane node moves alone: x"},
		{name: "nor beside another's of the control plane", members: "a b", others: "cp-1", budget: "5", wait: "a control-plane node is in flight: cp-1"},
		{name: "interrupted", members: "a* b", budget: "5", stop: "interrupted", stopped: "interrupted"},
		{name: "paused", members: "a* b c>!", budget: "5", hold: "paused by bob", wait: "paused by bob"},
		{name: "paused and aborted", members: "a* b", budget: "5", hold: "paused by bob", stop: "aborted", stopped: "aborted"},
		{name: "paused at the end", members: "a* b+", budget: "5", hold: "paused by bob"},
		{name: "over", members: "a+ b+", budget: "5", over: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var members []Member
			for word := range strings.FieldsSeq(test.members) {
				members = append(members, member(word))
			}
			budget, err := ParseBudget(test.budget)
			if err != nil {
				t.Fatal(err)
			}
			var others []Slot
			for node := range strings.FieldsSeq(test.others) { // "x~" is one that nobody works on
				name, idle := strings.CutSuffix(node, "~")
				others = append(others, Slot{Node: name, Holder: "bob@desk/1", ControlPlane: strings.HasPrefix(name, "cp"), idle: idle})
			}
			got := Next(members, Limits{MaxUnavailable: budget, MaxFailures: max(1, test.failures), DrainAttempts: 2}, others, Orders{Stop: test.stop, Hold: test.hold})
			if strings.Join(got.Start, " ") != test.start || strings.Join(got.Skip, " ") != test.skip || got.Over != test.over {
				t.Errorf("start %q, skip %q, over %t", got.Start, got.Skip, got.Over)
			}
			if !strings.Contains(got.Wait, test.wait) || (got.Wait == "") != (test.wait == "") {
				t.Errorf("wait %q, want %q", got.Wait, test.wait)
			}
			if !strings.Contains(got.Stopped, test.stopped) || (got.Stopped == "") != (test.stopped == "") {
				t.Errorf("stopped %q, want %q", got.Stopped, test.stopped)
			}
		})
	}
}

func TestWindow(t *testing.T) {
	var got []int
	for done := range 17 {
		got = append(got, window(done))
	}
	if want := []int{1, 1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8, 16}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestParseBudget(t *testing.T) {
	for _, test := range []struct {
		text     string
		of7, of9 int
	}{{"1", 1, 1}, {"3", 3, 3}, {"100", 100, 100}, {"1%", 1, 1}, {"25%", 1, 2}, {"50%", 3, 4}, {"100%", 7, 9}} {
		budget, err := ParseBudget(test.text)
		if err != nil || budget.Of(7) != test.of7 || budget.Of(9) != test.of9 || budget.String() != test.text {
			t.Errorf("%s: %s of 7 is %d, of 9 is %d, %v", test.text, &budget, budget.Of(7), budget.Of(9), err)
		}
	}
	for _, text := range []string{"", "0", "0%", "-1", "+1", "-5%", "101%", "1.5", "10 %", "%", "many", "99999999999999999999"} {
		if budget, err := ParseBudget(text); err == nil {
			t.Errorf("%q is taken for %s", text, &budget)
		}
	}
}

// world is a cluster that follows the decisions of Next, with nodes that fail, are cordoned by others, vanish, and are blocked.
type world struct {
	random  *rand.Rand
	members []Member
	starts  map[string]int
	limits  Limits
}

// TestNextKeepsItsPromises plays rollouts at random. An independent observer, who knows nothing but which nodes are out of service, checks each moment.
func TestNextKeepsItsPromises(t *testing.T) {
	for seed := range uint64(3000) {
		w := &world{random: rand.New(rand.NewPCG(seed, 1)), starts: map[string]int{}}
		count := 1 + w.random.IntN(20)
		for i := range count {
			m := member(fmt.Sprintf("node-%d", i))
			m.ControlPlane = i >= count-w.random.IntN(4)
			if w.random.IntN(10) == 0 {
				m.Phase, m.Result = Ended, Skipped
			}
			w.members = append(w.members, m)
		}
		limits := Limits{
			MaxUnavailable: Budget{number: 1 + w.random.IntN(100), percent: true}, MaxFailures: 1 + w.random.IntN(4), DrainAttempts: 1 + w.random.IntN(3),
		}
		if w.random.IntN(2) == 0 {
			limits.MaxUnavailable = Budget{number: 1 + w.random.IntN(5)}
		}
		w.limits = limits
		if problem := w.play(limits); problem != "" {
			t.Fatalf("seed %d, %+v: %s", seed, limits, problem)
		}
	}
}

// play returns what was wrong.
func (w *world) play(limits Limits) string {
	budget, calm := limits.MaxUnavailable.Of(len(w.members)), 0
	for step := 0; ; step++ {
		if step > 5000 {
			return "it does not end"
		}
		before := w.outOfService()
		d := Next(w.members, limits, nil, Orders{})
		for _, name := range d.Skip {
			m := w.find(name)
			m.Phase, m.Result = Ended, Skipped
		}
		for _, name := range d.Start {
			m := w.find(name)
			if m.Phase != Waiting || m.Gone != "" {
				return "started although it does not wait: " + name
			}
			m.Phase, m.Attempts = InFlight, m.Attempts+1
			if w.starts[name]++; w.starts[name] > limits.DrainAttempts {
				return "started too often: " + name
			}
			if m.ControlPlane && w.inFlight() > 1 {
				return "a control-plane node beside another: " + name
			}
		}
		// Whoever starts may find others out of service, but does not add to them beyond the budget.
		if after := w.outOfService(); len(d.Start) > 0 && after > before && after > budget {
			return fmt.Sprintf("%d nodes out of service, %d are allowed", after, budget)
		}
		if d.Over {
			return w.left(d, limits)
		}
		if len(d.Start) == 0 && w.inFlight() == 0 && d.Wait == "" {
			return "nothing happens, for no reason"
		}
		if len(d.Start) == 0 && w.inFlight() == 0 {
			if calm++; calm > 100 { // whoever has cordoned nodes gives them back in the end
				for i := range w.members {
					w.members[i].Out = ""
				}
			}
		}
		w.happen()
	}
}

// left checks that nothing is left without a reason.
func (w *world) left(d Decision, limits Limits) string {
	failures := 0
	for _, m := range w.members {
		if m.Phase == InFlight {
			return "over while a node is in flight"
		}
		if m.Phase == Waiting && m.Gone == "" && d.Stopped == "" {
			return "over while a node waits"
		}
		if m.Phase == Ended && m.Result.failed() {
			failures++
		}
	}
	if failures >= limits.MaxFailures && d.Stopped == "" && slices.ContainsFunc(w.members, func(m Member) bool { return m.Phase == Waiting }) {
		return "it is not said why it stopped"
	}
	return ""
}

func (w *world) find(name string) *Member {
	return &w.members[slices.IndexFunc(w.members, func(m Member) bool { return m.Name == name })]
}

func (w *world) inFlight() (count int) {
	for _, m := range w.members {
		if m.Phase == InFlight {
			count++
		}
	}
	return count
}

// outOfService is what somebody who watches the cluster counts.
func (w *world) outOfService() (count int) {
	for _, m := range w.members {
		if m.Gone == "" && (m.Phase == InFlight || m.Out != "" || m.Result == Stuck) || m.Gone != "" && m.Phase == InFlight {
			count++
		}
	}
	return count
}

// happen has a few things happen to the nodes.
func (w *world) happen() {
	for range 1 + w.random.IntN(3) {
		m := &w.members[w.random.IntN(len(w.members))]
		switch w.random.IntN(12) {
		case 0:
			m.Out = "cordoned"
		case 1, 2:
			m.Out = ""
		case 3:
			if w.random.IntN(20) == 0 {
				m.Gone = "gone"
			}
		default:
			if m.Phase == InFlight {
				w.end(m)
			}
		}
	}
}

func (w *world) end(m *Member) {
	m.Phase = Ended
	switch w.random.IntN(20) {
	case 0:
		m.Result, m.Reason = RolledBack, fmt.Sprint(w.random.IntN(3))
	case 1:
		m.Result = Stuck
	case 2, 3:
		m.Phase = Waiting
		if m.Attempts >= w.limits.DrainAttempts {
			m.Phase, m.Result = Ended, Blocked
		}
	default:
		m.Result = Done
	}
}
