package hollow

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// seen is what a node has seen of a run.
type seen struct {
	seeing   sync.Mutex
	phases   []protocol.Phase
	cordons  []bool
	started  []string
	canaries map[string]bool
	// waitedCordoned: a pod that waits was started while the node was cordoned.
	waitedCordoned bool
}

// Phases are those that were asked for, in order.
func (s *seen) Phases() []protocol.Phase { return copied(s, &s.phases) }

// Cordons are the states of the cordon, in order.
func (s *seen) Cordons() []bool { return copied(s, &s.cordons) }

// Started are the agent's arguments in the pods that were started, but for folder and spec.
func (s *seen) Started() []string { return copied(s, &s.started) }

// WaitedCordoned reports whether a pod that waits was started while the node was cordoned.
func (s *seen) WaitedCordoned() bool {
	s.seeing.Lock()
	defer s.seeing.Unlock()
	return s.waitedCordoned
}

// Canaries are the names of the canaries that were started.
func (s *seen) Canaries() []string {
	s.seeing.Lock()
	defer s.seeing.Unlock()
	return slices.Sorted(maps.Keys(s.canaries))
}

func copied[T any](s *seen, list *[]T) []T {
	s.seeing.Lock()
	defer s.seeing.Unlock()
	return slices.Clone(*list)
}

func (s *seen) sawPhase(phase protocol.Phase) {
	s.seeing.Lock()
	defer s.seeing.Unlock()
	s.phases = append(s.phases, phase)
}

func (s *seen) sawCordon(cordoned bool) {
	s.seeing.Lock()
	defer s.seeing.Unlock()
	if n := len(s.cordons); n == 0 || s.cordons[n-1] != cordoned {
		s.cordons = append(s.cordons, cordoned)
	}
}

func (s *seen) sawStart(args []string) {
	s.seeing.Lock()
	defer s.seeing.Unlock()
	s.started = append(s.started, strings.Join(slices.Delete(slices.Clone(args), 1, 3), " "))
}

func (s *seen) sawCanary(name string) {
	s.seeing.Lock()
	defer s.seeing.Unlock()
	if s.canaries == nil {
		s.canaries = map[string]bool{}
	}
	s.canaries[name] = true
}

func (s *seen) sawWaiting(cordoned bool) {
	s.seeing.Lock()
	defer s.seeing.Unlock()
	s.waitedCordoned = cordoned
}
