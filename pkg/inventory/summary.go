package inventory

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// Summary counts rows in one line: "5 nodes: 3 docker, 2 containerd; 1 switching, 1 failed". The most frequent runtime is first.
func Summary(rows []Row) string {
	runtimes := map[string]int{}
	var switching, rolledBack, failed, broken int
	for _, row := range rows {
		runtimes[orDefault(row.Runtime, "unknown")]++
		switch {
		case row.Switch.Open():
			switching++
		case row.Switch == nodestate.StateRolledBack:
			rolledBack++
		case row.Switch == nodestate.StateFailed:
			failed++
		case row.Switch == nodestate.StateBroken:
			broken++
		}
	}
	names := make([]string, 0, len(runtimes))
	for name := range runtimes {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(runtimes[b]-runtimes[a], strings.Compare(a, b))
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%d %s", runtimes[name], name)
	}
	var states []string
	for _, state := range []struct {
		count int
		name  string
	}{{switching, "switching"}, {rolledBack, "rolled back"}, {failed, "failed"}, {broken, "broken"}} {
		if state.count > 0 {
			states = append(states, fmt.Sprintf("%d %s", state.count, state.name))
		}
	}
	unit := "nodes"
	if len(rows) == 1 {
		unit = "node"
	}
	line := fmt.Sprintf("%d %s: %s", len(rows), unit, strings.Join(names, ", "))
	if len(states) > 0 {
		line += "; " + strings.Join(states, ", ")
	}
	return line
}
