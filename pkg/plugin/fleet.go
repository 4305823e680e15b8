package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodewatch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/render"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rollout"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rolloutrecord"
)

// preflightAge is how long what the preflight found is good for: a node that starts later is judged again.
const preflightAge = 30 * time.Second

// addLimitFlags adds the flags that bound a rollout over several nodes.
func (o *runOptions) addLimitFlags(flags *pflag.FlagSet) {
	o.limits.MaxUnavailable = rollout.DefaultBudget()
	flags.Var(&o.limits.MaxUnavailable, "max-unavailable", "How many of the selected nodes may be unavailable at a time, also for other reasons: a number, or a percentage that is rounded down, at least 1")
	flags.IntVar(&o.limits.MaxFailures, "max-failures", 1, "Start no other node once this many have failed")
	flags.IntVar(&o.limits.DrainAttempts, "drain-attempts", 2, "How often a node is tried whose drain PodDisruptionBudgets block until --timeout; between the attempts, the other nodes have their turn. A node that is switched alone is tried once")
}

func (o *runOptions) validateLimits() error {
	if o.limits.MaxFailures < 1 || o.limits.DrainAttempts < 1 {
		return errors.New("--max-failures and --drain-attempts cannot be less than 1")
	}
	return nil
}

// fleetWork does a rollout's work on nodes. It is a rollout.Work.
type fleetWork struct {
	*runOptions
	move     move
	switcher *nodeswitch.Switcher
	progress *lazyProgress
	nodes    *nodewatch.Nodes
	checked  *checked
	many     bool
	// record is nil where a single node is moved.
	record *rolloutrecord.Driver

	waiting  time.Time
	failures []nodeFailure
	counts   map[string]int
	broken   error // what kept a result from being printed

	mu       sync.Mutex
	outcomes map[string]outcome
}

// outcome is what became of the last attempt on a node.
type outcome struct {
	report *nodeswitch.Report
	err    error
}

type nodeFailure struct {
	node   string
	result rollout.Result
	err    error
}

// moveNodes moves nodes, several at a time within the limits, and says what became of them.
func (o *runOptions) moveNodes(ctx context.Context, m move, r *nodeswitch.Switcher, progress *lazyProgress, c *checked) error {
	f := &fleetWork{
		runOptions: o, move: m, switcher: r, progress: progress, checked: c, counts: map[string]int{}, outcomes: map[string]outcome{},
		nodes: nodewatch.NewNodes(o.client, o.factory.Clock, c.nodes),
	}
	var selected []rollout.Selected
	todo := 0
	for i, finding := range c.findings {
		s := rollout.Selected{Node: &c.nodes[i], Resumes: finding.Verdict == preflight.Resume}
		if s.Todo = finding.Verdict == preflight.Go || s.Resumes; s.Todo {
			todo++
		}
		selected = append(selected, s)
	}
	limits := o.limits
	if f.many = todo > 1; !f.many {
		limits.DrainAttempts = 1
	}
	if len(selected) > 1 { // the watch is of all nodes
		watching, stop := context.WithCancel(context.WithoutCancel(ctx))
		defer stop()
		f.nodes.Start(watching)
	}
	done := context.AfterFunc(ctx, progress.interrupted)
	defer done()
	slots := &rollout.Slots{Client: o.client, Clock: o.factory.Clock, Claims: r.Claims(), Cluster: f.nodes, EnsureNamespace: r.EnsureNamespace}
	r.Admit = slots.Holds
	driver := &rollout.Driver{Limits: limits, Cluster: f.nodes, Work: f, Clock: o.factory.Clock, Shared: slots}
	if f.many {
		if err := f.begin(ctx, len(selected)); err != nil {
			return err
		}
		driver.Record = f.record
	}
	summary := driver.Run(ctx, selected)
	progress.Close()
	if f.record != nil {
		f.end(ctx, summary)
	}
	return f.finish(ctx, summary)
}

// begin makes the record of the rollout, and says its name.
func (f *fleetWork) begin(ctx context.Context, selected int) error {
	errOut := f.factory.Streams.ErrOut
	if err := f.switcher.EnsureNamespace(ctx); err != nil {
		return f.factory.Explain("create", "namespaces", nodejob.Namespace, err)
	}
	holder := f.switcher.Claims().Holder
	spec := rolloutrecord.Spec{
		Operation: f.move.name, Selection: f.selected, Flags: f.flags, Nodes: selected, MaxUnavailable: f.limits.MaxUnavailable.String(),
		MaxFailures: f.limits.MaxFailures, DrainAttempts: f.limits.DrainAttempts, Image: f.rollout.Image, Owner: rolloutrecord.Person(holder),
		Version: f.factory.Version,
	}
	var err error
	f.record, err = rollouts(f.factory, f.client).Create(ctx, spec, holder, func(text string) { fmt.Fprintf(errOut, "warning: %s\n", text) })
	if err != nil {
		return f.factory.Explain("create", "configmaps", "", err)
	}
	f.rolloutName = f.record.Name
	fmt.Fprintf(errOut, "rollout/%s created: `%s` pauses it, abort ends it\n", f.record.Name, f.factory.Command("rollout", "pause", f.record.Name))
	return nil
}

// end writes into the record how the rollout ended.
func (f *fleetWork) end(ctx context.Context, summary rollout.Summary) {
	interrupted := ctx.Err() != nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := f.record.End(ctx, summary, interrupted); err != nil {
		fmt.Fprintf(f.factory.Streams.ErrOut, "warning: the record of rollout %s does not say how it ended: %s\n", f.record.Name, err)
	}
}

// Move moves one node.
func (f *fleetWork) Move(ctx context.Context, node string) rollout.End {
	report, err := f.try(ctx, node)
	f.mu.Lock()
	f.outcomes[node] = outcome{report, err}
	f.mu.Unlock()
	end := f.endOf(node, err)
	if end.Result == rollout.Interrupted {
		end.Left = f.isLeft(ctx, node)
	}
	return end
}

// isLeft reports whether a node does not serve after an interruption, or may not.
func (f *fleetWork) isLeft(ctx context.Context, name string) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	node, err := f.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	return err != nil || rollout.Unavailable(node) != ""
}

func (f *fleetWork) try(ctx context.Context, node string) (*nodeswitch.Report, error) {
	if err := f.judgeAgain(ctx, node); err != nil {
		return &nodeswitch.Report{Node: node}, &nodeswitch.Error{
			Node: node, Stage: nodeswitch.StageClaim, Outcome: nodeswitch.OutcomeRefused, State: "nothing was changed", Cause: err,
		}
	}
	return f.move.do(f.switcher, ctx, node)
}

// judgeAgain judges a node right before it starts, where the preflight is not of just now.
func (f *fleetWork) judgeAgain(ctx context.Context, name string) error {
	node := f.nodes.Node(name)
	if node == nil || f.factory.Clock.Now().Sub(f.checked.at) < preflightAge {
		return nil
	}
	findings, err := f.move.preflight(f.switcher.Preflight(), ctx, []corev1.Node{*node}, f.checked.alone)
	if err != nil {
		return f.factory.Explain("check", "nodes", name, err)
	}
	if finding := findings[0]; finding.Verdict == preflight.Skip || finding.Verdict == preflight.Refuse {
		return &preflight.UnfitError{Finding: finding}
	}
	return nil
}

// endOf is how a node's error counts.
func (f *fleetWork) endOf(node string, err error) rollout.End {
	var failed *nodeswitch.Error
	if err == nil {
		return rollout.End{Result: rollout.Done}
	}
	if !errors.As(err, &failed) {
		return rollout.End{Result: rollout.Failed, Reason: commonReason(node, err)}
	}
	var unfit *preflight.UnfitError
	var held *claim.HeldError
	var drained *drain.TimeoutError
	end := rollout.End{Reason: string(failed.Stage) + ": " + commonReason(node, failed.Cause), Left: errors.As(err, &held) || errors.Is(err, claim.ErrLost)}
	isUnfit := failed.Stage == nodeswitch.StageClaim && failed.Outcome == nodeswitch.OutcomeRefused && (errors.As(err, &unfit) || held != nil)
	switch {
	case errors.Is(err, rollout.ErrNotHeld):
		return rollout.End{Result: rollout.Postponed}
	case isUnfit && unfit != nil && unfit.Finding.Verdict == preflight.Skip, isUnfit && f.skips():
		return rollout.End{Result: rollout.Skipped, Reason: failed.Cause.Error(), Left: held != nil}
	case failed.Outcome == nodeswitch.OutcomeTimeout && errors.As(err, &drained) && len(drained.Blocked) > 0:
		end.Result = rollout.Blocked
		return end
	}
	end.Result = map[nodeswitch.Outcome]rollout.Result{
		nodeswitch.OutcomeRefused: rollout.Refused, nodeswitch.OutcomeRolledBack: rollout.RolledBack, nodeswitch.OutcomeStuck: rollout.Stuck,
		nodeswitch.OutcomeTimeout: rollout.TimedOut, nodeswitch.OutcomeInterrupted: rollout.Interrupted, nodeswitch.OutcomeFailed: rollout.Failed,
	}[failed.Outcome]
	return end
}

var particular = regexp.MustCompile(`[0-9]+`)

// commonReason is an error without what differs from node to node: its name, and numbers.
func commonReason(node string, err error) string {
	return particular.ReplaceAllString(strings.ReplaceAll(err.Error(), node, "NODE"), "N")
}

// Ended prints what became of a node.
func (f *fleetWork) Ended(node string, end rollout.End) {
	f.mu.Lock()
	o := f.outcomes[node]
	f.mu.Unlock()
	f.counts[string(end.Result)]++
	f.progress.pause(func() {
		switch end.Result {
		case rollout.Done:
			errOut := f.factory.Streams.ErrOut
			_, _ = io.WriteString(errOut, render.Report(o.report, f.move.wayBack(node, o.report.Run)))
			f.note(f.conclude(nodeResult(o.report, nil), fmt.Sprintf("node/%s %s %s\n", node, f.move.done, o.report.To)))
		case rollout.Skipped:
			f.note(f.conclude(v1alpha1.NodeResult{Node: node, Result: v1alpha1.ResultSkipped, Reason: end.Reason}, fmt.Sprintf("node/%s skipped: %s\n", node, end.Reason)))
		default:
			saveEvidence(f.factory.Streams.ErrOut, o.report)
			result := nodeResult(o.report, o.err)
			if end.Result == rollout.Blocked {
				result.Result = v1alpha1.ResultBlocked
			}
			f.results = append(f.results, result)
			f.failures = append(f.failures, nodeFailure{node, end.Result, o.err})
		}
	})
}

func (f *fleetWork) note(err error) { f.broken = errors.Join(f.broken, err) }

// Again says that a node went to the end of the queue.
func (f *fleetWork) Again(node string, end rollout.End) {
	stage := nodeswitch.StageDrain
	if end.Result == rollout.Postponed {
		stage = nodeswitch.StageClaim
	}
	f.progress.Observe(nodeswitch.Update{
		Time: f.factory.Clock.Now(), Node: node, Stage: stage, Kind: nodeswitch.Info, Text: "the node serves, and is tried again after the others",
	})
}

// The name and the stage of the line that says what the rollout as a whole does.
const (
	rolloutLine = "rollout"
	stageWait   = nodeswitch.Stage("wait")
)

// Waits says why no node starts.
func (f *fleetWork) Waits(why string) {
	now := f.factory.Clock.Now()
	update := nodeswitch.Update{Time: now, Node: rolloutLine, Stage: stageWait}
	if why == "" {
		update.Kind, update.Elapsed = nodeswitch.StageEnded, now.Sub(f.waiting)
		f.waiting = time.Time{}
		f.progress.Observe(update)
		return
	}
	if f.waiting.IsZero() {
		f.waiting = now
		update.Kind = nodeswitch.StageBegun
		f.progress.Observe(update)
	}
	update.Kind, update.Text = nodeswitch.Info, "no node starts: "+why
	f.progress.Observe(update)
}

// finish reports the nodes that did not start, and sums up. What failed is one error.
func (f *fleetWork) finish(ctx context.Context, summary rollout.Summary) error {
	errOut := f.factory.Streams.ErrOut
	var left []string
	for _, member := range summary.Members {
		if member.Phase == rollout.Waiting {
			left = append(left, member.Name)
			f.results = append(f.results, v1alpha1.NodeResult{Node: member.Name, Result: v1alpha1.ResultNotBegun, Reason: summary.Stopped})
		}
	}
	f.sortResults()
	if len(left) > 0 {
		fmt.Fprintf(errOut, "not started: %s\n", strings.Join(left, ", "))
	}
	if f.many {
		fmt.Fprintln(errOut, f.sum(len(left), summary.Stopped))
	}
	if err := f.failure(ctx, len(left), summary); err != nil {
		return err
	}
	return f.broken
}

// sortResults has them in the order in which the nodes were to start.
func (f *fleetWork) sortResults() {
	at := map[string]int{}
	for i := range f.checked.nodes {
		at[f.checked.nodes[i].Name] = i
	}
	slices.SortStableFunc(f.results, func(a, b v1alpha1.NodeResult) int { return at[a.Node] - at[b.Node] })
}

// sum is one line on the whole rollout.
func (f *fleetWork) sum(left int, stopped string) string {
	var parts []string
	for _, r := range []struct {
		result rollout.Result
		text   string
	}{
		{rollout.Done, "done"}, {rollout.RolledBack, "rolled back"}, {rollout.Failed, "failed"}, {rollout.TimedOut, "timed out"}, {rollout.Refused, "refused"},
		{rollout.Stuck, "in need of a person"}, {rollout.Blocked, "blocked by PodDisruptionBudgets"}, {rollout.Interrupted, "interrupted"}, {rollout.Skipped, "skipped"},
	} {
		if n := f.counts[string(r.result)]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, r.text))
		}
	}
	if left > 0 {
		parts = append(parts, fmt.Sprintf("%d not started: %s", left, stopped))
	}
	return rolloutLine + ": " + strings.Join(parts, ", ")
}

// failure is the error of all that failed, with the exit code of the worst.
func (f *fleetWork) failure(ctx context.Context, left int, summary rollout.Summary) error {
	resume := fmt.Sprintf("`%s` resumes the rollout", f.factory.Command(slices.Concat([]string{f.move.name}, f.selected, f.flags)...))
	switch {
	case len(f.failures) == 0 && summary.Err != nil:
		return f.factory.Explain("update", "configmaps", "", summary.Err)
	case len(f.failures) == 0 && left > 0 && ctx.Err() != nil:
		return context.Cause(ctx)
	case len(f.failures) == 0 && left > 0:
		return cli.Exitf(cli.ExitGeneral, "%d of the nodes were not started: %s", left, summary.Stopped).WithHint("%s", resume)
	case len(f.failures) == 0:
		return nil
	case len(f.failures) == 1 && !f.many:
		return f.exitError(f.move.name, f.failures[0].node, f.failures[0].err)
	}
	// The worst first.
	slices.SortStableFunc(f.failures, func(a, b nodeFailure) int { return slices.Index(worst, a.result) - slices.Index(worst, b.result) })
	all := &cli.ExitError{}
	var errs []error
	var hints []string
	resumable := false
	for i, failure := range f.failures {
		errs = append(errs, failure.err)
		var exit *cli.ExitError
		if !errors.As(f.exitError(f.move.name, failure.node, failure.err), &exit) {
			continue
		}
		if i == 0 {
			all.Code = exit.Code
		}
		if all.Detail == "" {
			all.Detail = exit.Detail
		}
		var failed *nodeswitch.Error
		if errors.As(failure.err, &failed) {
			resumable = resumable || failed.Resumable
			if failed.Hint != "" && !slices.Contains(hints, failed.Hint) && len(hints) < maxHints {
				hints = append(hints, failed.Hint)
			}
		}
	}
	if resumable || left > 0 {
		hints = slices.Insert(hints, 0, resume)
	}
	all.Err, all.Hint = errors.Join(errs...), strings.Join(hints, "; ")
	return all
}

// maxHints bounds the hints below the errors of several nodes.
const maxHints = 3

// worst are the results in the order in which they decide about the exit code.
var worst = []rollout.Result{rollout.Stuck, rollout.Interrupted, rollout.RolledBack, rollout.Blocked, rollout.TimedOut, rollout.Failed, rollout.Refused}
