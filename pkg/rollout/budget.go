package rollout

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Budget is how many nodes may be unavailable at a time: a number, or a percentage of the selected nodes. Its zero value is invalid.
type Budget struct {
	number  int
	percent bool
}

// DefaultBudget is one node at a time.
func DefaultBudget() Budget { return Budget{number: 1} }

// ParseBudget reads "3" or "10%".
func ParseBudget(text string) (Budget, error) {
	digits, percent := strings.CutSuffix(text, "%")
	number, err := strconv.Atoi(digits)
	switch {
	case err != nil || strings.TrimLeft(digits, "0123456789") != "":
		return Budget{}, fmt.Errorf("%q is neither a number of nodes nor a percentage: give 3 or 10%%", text)
	case number == 0:
		return Budget{}, errors.New("no node could ever start: give at least 1 or 1%")
	case percent && number > 100:
		return Budget{}, fmt.Errorf("%q is more than all nodes: give at most 100%%", text)
	}
	return Budget{number: number, percent: percent}, nil
}

// Of is the budget for a number of selected nodes. A percentage is rounded down, as Deployments do it with maxUnavailable, but is at least one node.
func (b Budget) Of(nodes int) int {
	if b.percent {
		return max(1, nodes*b.number/100)
	}
	return max(1, b.number)
}

// String, Set and Type make a Budget the value of a flag.
func (b *Budget) String() string {
	if b.percent {
		return strconv.Itoa(b.number) + "%"
	}
	return strconv.Itoa(b.number)
}

// Set reads a flag's value.
func (b *Budget) Set(text string) error {
	parsed, err := ParseBudget(text)
	if err == nil {
		*b = parsed
	}
	return err
}

// Type names the kind of value in the help.
func (b *Budget) Type() string { return "N|N%" }
