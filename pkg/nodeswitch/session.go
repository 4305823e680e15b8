package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/jobnamespace"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodewatch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// undoTimeout bounds what is cleared up after a failure or an interruption.
const undoTimeout = 2 * apiPatience

// maxChanged bounds the changed files of a report: a node that means well names a dozen.
const maxChanged = 500

// session is the switch or the rollback of one node, from claim to release.
type session struct {
	*Switcher
	direction
	name   string
	run    string
	from   string
	state  nodestate.State // where the run was when this session took it up
	report *Report
	// Each part has what it does in files of its own.
	host     *hostWork
	pods     *nodePods
	checks   *verification
	ending   *ending
	evidence *evidence

	held *claim.Claim
	// node changes the node's state.
	node *nodestate.Editor
	// watch knows node and pods, and runner looks there.
	watch    *nodewatch.Watch
	runner   *nodejob.Runner
	follower *nodejob.Follower
	// namespace is as this session has opened it.
	namespace   *corev1.Namespace
	images      []string
	endpoint    string // the new runtime's, as the agent found it
	oldEndpoint string // the old runtime's
	old         string // the old runtime's name
	// before are the DaemonSets and static pods that were ready on the node before the cutover; nil where nobody looked.
	before map[string]bool
	// leaving are the pods that were being deleted on the node before the cutover; nil where nobody looked.
	leaving       map[types.UID]bool
	lastHeartbeat time.Time // that was seen before the cutover
	cordonedAt    time.Time
	// unready: the node was not Ready when its rollback began: its kubelet says nothing.
	unready bool
	// parked: the cutover's pod waits on the node.
	parked bool
	// canary tells this session's canary from every other, canaryStarted that its pod was made before the verification.
	canary        string
	canaryStarted bool
	// image is the agent's as the cluster has it run, if it is known.
	image string
	// unproven are the canary's checks that failed on the old runtime.
	unproven []string
	// disproved is why the verification failed.
	disproved error
	// heard is set once any agent event arrived.
	heard bool

	mu    sync.Mutex
	stage Stage
	began time.Time
}

// newSession makes a session that has no direction yet.
func (r *Switcher) newSession(name string) *session {
	s := &session{Switcher: r, name: name, report: &Report{Node: name}, runner: r.runner, watch: nodewatch.New(r.client, r.clock, name)}
	s.host, s.pods, s.checks, s.ending, s.evidence = &hostWork{s}, &nodePods{s}, &verification{s}, &ending{s}, &evidence{session: s}
	return s
}

// holding claims the node, marks it, and does the work while it has the claim.
func (s *session) holding(ctx context.Context) error {
	s.runner = s.Switcher.runner.For(s.watch)
	s.follower = s.runner.NewFollower(s.onEvent, func(text string) { s.tell(Info, "%s", text) })
	ctx, stop := context.WithCancel(ctx) // the watch
	defer stop()
	ctx, err := s.claim(ctx)
	if err != nil {
		return err
	}
	defer func() {
		undo, cancel := s.undoContext(ctx)
		defer cancel()
		if !s.held.IsLost() && !leavesRunOpen(err) { // before the claim is released: the next run opens it again
			if closeErr := s.namespaces().Close(undo, jobnamespace.Key(s.name), s.namespace); closeErr != nil {
				s.tell(Warning, "%s", closeErr)
			}
		}
		if releaseErr := s.held.Release(undo); releaseErr != nil {
			s.tell(Warning, "%s", releaseErr)
		}
	}()
	err = s.course.walk(ctx)
	if s.evidence.isWorthEvidence(ctx, err) {
		s.report.Evidence = s.evidence.gather(ctx, err)
	}
	return err
}

// stageWork is a stage and what it consists of.
type stageWork struct {
	stage Stage
	run   func(context.Context) error
	skip  bool
}

// inOrder goes through stages until one fails.
func (s *session) inOrder(ctx context.Context, stages []stageWork) error {
	for _, stage := range stages {
		if stage.skip {
			continue
		}
		if err := s.inStage(ctx, stage.stage, stage.run); err != nil {
			return err
		}
	}
	return nil
}

// inStage frames a stage for observer and report. A stage returns an *Error, or an error that left the node as it was.
func (s *session) inStage(ctx context.Context, stage Stage, run func(context.Context) error) error {
	began := s.begin(stage)
	err := run(ctx)
	s.end(stage, began, err)
	var known *Error
	switch {
	case err != nil && s.held.IsLost():
		return &Error{Node: s.name, Stage: stage, Outcome: OutcomeFailed, State: "this run left the node to it", Cause: claim.ErrLost}
	case err != nil && !errors.As(err, &known):
		outcome := OutcomeStuck
		if ctx.Err() != nil {
			outcome = OutcomeInterrupted
		}
		return &Error{Node: s.name, Stage: stage, Outcome: outcome, State: s.whereabouts(ctx), Resumable: true, Cause: err}
	}
	return err
}

func (s *session) begin(stage Stage) time.Time {
	now := s.clock.Now()
	s.mu.Lock()
	s.stage, s.began = stage, now
	s.mu.Unlock()
	s.observe(Update{Time: now, Node: s.name, Stage: stage, Kind: StageBegun})
	return now
}

func (s *session) end(stage Stage, began time.Time, err error) {
	now := s.clock.Now()
	update := Update{Time: now, Node: s.name, Stage: stage, Kind: StageEnded, Elapsed: now.Sub(began), Failed: err != nil}
	if err != nil {
		update.Text = err.Error()
		var known *Error
		if errors.As(err, &known) && known.Cause != nil {
			update.Text = known.Cause.Error()
		}
	}
	s.report.Stages = append(s.report.Stages, StageTime{Stage: stage, Elapsed: update.Elapsed})
	s.observe(update)
}

func (s *session) observe(update Update) {
	s.evidence.note(update)
	s.observer.Observe(update)
}

// tell passes a sentence on; warnings are also in the report.
func (s *session) tell(kind Kind, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.mu.Lock()
	stage := s.stage
	if kind == Warning {
		s.report.Warnings = append(s.report.Warnings, text)
	}
	s.mu.Unlock()
	s.observe(Update{Time: s.clock.Now(), Node: s.name, Stage: stage, Kind: kind, Text: text})
}

// onEvent passes the agent's events on.
func (s *session) onEvent(event protocol.Event) {
	s.heard = true
	switch {
	case s.events != "" && event.Phase != s.events:
		// The log begins with the run's first event, which may be weeks old.
	case event.Step != nil:
		s.mu.Lock()
		stage := s.stage
		if step := event.Step; step.State == protocol.StepDone || step.State == protocol.StepReverted {
			s.report.Steps = append(s.report.Steps, StepTime{event.Phase, step.ID, time.Duration(step.ElapsedMillis) * time.Millisecond})
		}
		s.mu.Unlock()
		s.observe(Update{Time: event.Time, Node: s.name, Stage: stage, Kind: AgentStep, Step: event.Step})
	case event.Facts != nil:
		s.endpoint, s.oldEndpoint = event.Facts.NewEndpoint, event.Facts.OldEndpoint
		for _, warning := range event.Facts.Warnings {
			s.tell(Warning, "%s", warning)
		}
	case event.Log != nil && event.Log.Level == "warning":
		s.tell(Warning, "%s", event.Log.Message)
	case event.Log != nil:
		s.tell(Info, "%s", event.Log.Message)
	case event.Result != nil:
		for _, file := range event.Result.ChangedFiles {
			if len(s.report.ChangedFiles) < maxChanged && !slices.Contains(s.report.ChangedFiles, file) {
				s.report.ChangedFiles = append(s.report.ChangedFiles, file)
			}
		}
	}
}

// undoContext is for what has to be done although ctx is over.
func (s *session) undoContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
}

// claim takes the Lease, finds out whether a run can be resumed, and marks the node.
func (s *session) claim(ctx context.Context) (context.Context, error) {
	began := s.begin(StageClaim)
	claimed, err := s.takeAndMark(ctx)
	s.end(StageClaim, began, err)
	if err != nil {
		return nil, &Error{
			Node: s.name, Stage: StageClaim, Outcome: refusedOrInterrupted(ctx), State: "nothing was changed", Hint: Hint(err), Cause: err,
		}
	}
	return claimed, nil
}

func refusedOrInterrupted(ctx context.Context) Outcome {
	if ctx.Err() != nil {
		return OutcomeInterrupted
	}
	return OutcomeRefused
}

func (s *session) takeAndMark(ctx context.Context) (context.Context, error) {
	namespace, err := s.namespaces().Ensure(ctx)
	if err != nil {
		return nil, err
	}
	s.run, s.canary = nodestate.NewRun(s.clock.Now()), nodestate.NewRun(s.clock.Now())
	held, claimed, err := s.claims.Take(ctx, s.name, s.run, s.operation, func(text string) { s.tell(Info, "%s", text) })
	if err != nil {
		return nil, err
	}
	s.held = held
	s.node = &nodestate.Editor{Client: s.client, Node: s.name, Claim: held, Seen: s.watch.Node, Retry: s.retry}
	if held.Dead != nil {
		s.tell(Info, "took the node over: %s, but nobody has renewed that claim, which ended at %s", held.Dead, held.Dead.Until.Local().Format("15:04:05"))
	}
	if s.Admit != nil {
		err = s.Admit(claimed, s.name)
	}
	opened := false
	if err == nil {
		s.namespace, opened, err = s.namespaces().Open(claimed, namespace, jobnamespace.Key(s.name), s.name)
	}
	if err == nil {
		err = s.course.mark(claimed)
	}
	if err != nil {
		undo, cancel := s.undoContext(ctx)
		defer cancel()
		if opened {
			err = errors.Join(err, s.namespaces().Close(undo, jobnamespace.Key(s.name), nil))
		}
		return nil, errors.Join(err, held.Release(undo))
	}
	return claimed, nil
}

// readNode reads the node under the claim, since nobody else changes its state then, and judges it. Where an earlier claim has left its epoch, whoever had that
// is kept from any further change first.
func (s *session) readNode(ctx context.Context, judge func(*corev1.Node) preflight.Finding) (*corev1.Node, error) {
	node, err := s.getNode(ctx, s.name)
	if err != nil {
		return nil, err
	}
	if err := unfit(judge(node)); err != nil {
		return nil, err
	}
	s.watch.Start(ctx, node)
	if !s.node.Took(node) {
		return node, nil
	}
	if node, err = s.node.Fence(ctx); err != nil {
		return nil, err
	}
	return node, unfit(judge(node))
}

// unfit is an error for a node that is not to be moved.
func unfit(finding preflight.Finding) error {
	if finding.Verdict == preflight.Refuse || finding.Verdict == preflight.Skip {
		return &preflight.UnfitError{Finding: finding}
	}
	return nil
}

// keepClaim makes sure that the claim is still this session's.
func (s *session) keepClaim(ctx context.Context) error {
	return s.retry(ctx, func() error { return s.held.Keep(ctx) })
}

// proveClaim has the API server say so now.
func (s *session) proveClaim(ctx context.Context) error {
	return s.retry(ctx, func() error { return s.held.Prove(ctx) })
}

// podsOn lists the pods on the node, as they are watched.
func (s *session) podsOn(ctx context.Context) ([]corev1.Pod, error) {
	var pods []corev1.Pod
	err := s.retry(ctx, func() (err error) {
		pods, err = s.watch.Pods(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list pods of node %s: %w", s.name, err)
	}
	return pods, nil
}

// whereabouts says where the node stands, as far as the API tells now.
func (s *session) whereabouts(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	node, err := s.client.CoreV1().Nodes().Get(ctx, s.name, metav1.GetOptions{})
	if err != nil {
		return fmt.Sprintf("where the node stands is not known: %v", err)
	}
	row := inventory.FromNode(node)
	parts := []string{"the node is " + strings.TrimSuffix(row.Status(), ",SchedulingDisabled")}
	if row.Unschedulable {
		parts = append(parts, "cordoned")
	}
	return strings.Join(parts, ", ") + " and reports " + row.Reported
}

// leavesRunOpen reports whether a node's run is still open after it ended with err: its Job may need another pod, or the user resumes it.
func leavesRunOpen(err error) bool {
	var failed *Error
	return errors.As(err, &failed) && (failed.Resumable || failed.Outcome == OutcomeStuck || failed.Outcome == OutcomeInterrupted)
}
