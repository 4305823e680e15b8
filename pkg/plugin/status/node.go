package status

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// maxLine bounds what is shown of a text of a node, in bytes.
const maxLine = 32 << 10

// printNode tells people of a node that they asked for alone what its last run left: how far it is, who has the node, and what to type
// next. There is nothing to tell of a node that never had one.
func (o *Options) printNode(ctx context.Context, w io.Writer, row inventory.Row) {
	if row.Run == "" {
		return
	}
	line := func(name, value string) { fmt.Fprintf(w, "  %-9s %s\n", name+":", untrusted.Line(value, maxLine)) }
	fmt.Fprintf(w, "\nnode %s:\n", row.Name)
	line("state", cell(string(row.Switch), cellNone))
	run := row.Run
	if begun, ok := nodestate.RunBegun(row.Run); ok {
		run += ", started " + begun.Local().Format(time.DateTime)
	}
	line("run", run)
	if row.Message != "" {
		line("message", row.Message)
	}
	held, err := claim.Read(ctx, o.client, row.Name, o.factory.Clock.Now())
	switch {
	case err != nil:
		line("claim", cellUnknown+": "+err.Error())
	case held != nil:
		line("claim", held.Error())
	default:
		line("claim", cellNone+": no run is at work on it")
	}
	next := o.nextCommands(row, held != nil)
	if len(next) > 0 && row.AgentImage != "" && row.AgentImage != o.factory.AgentImage() {
		line("agent", row.AgentImage+": give that run's --image again, and its other flags on the agent's pods")
	}
	for _, command := range next {
		line("next", command)
	}
}

// nextCommands are what a user can type, with what it is for.
func (o *Options) nextCommands(row inventory.Row, claimed bool) []string {
	command := func(name, does string) string {
		args := []string{name, row.Name}
		if claimed {
			args = append(args, "--wait")
		}
		return "`" + o.factory.Command(args...) + "` " + does
	}
	switch {
	case row.Switch == nodestate.StateRollingBack:
		return []string{command("rollback", "resumes the rollback")}
	case row.Switch == nodestate.StateBroken:
		return []string{command("rollback", "tries again, once the cause is cured")}
	case row.Switch.Open():
		return []string{command("switch", "resumes it"), command("rollback", "undoes it")}
	case row.Switch == nodestate.StateDone && row.Runtime == inventory.RuntimeContainerd:
		return []string{command("rollback", "goes back")}
	case row.Switch == nodestate.StateDone && row.Runtime == inventory.RuntimeDocker:
		return []string{command("rollback", "proves the node, if its agent has undone the run by hand"), command("switch", "switches it again")}
	case row.Runtime == inventory.RuntimeDocker && (row.Switch == nodestate.StateFailed || row.Switch == nodestate.StateRolledBack):
		return []string{command("switch", "tries again")}
	default:
		return nil
	}
}
