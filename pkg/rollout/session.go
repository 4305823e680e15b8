package rollout

import (
	"bytes"
	"cmp"
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
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodewatch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// undoTimeout bounds what is cleared up after a failure or an interruption.
const undoTimeout = 2 * apiPatience

// maxChanged bounds the changed files of a report: a node that means well names a dozen.
const maxChanged = 500

// session is the switch or the rollback of one node, from claim to release.
type session struct {
	*Rollout
	name   string
	run    string
	from   string
	state  nodestate.State // where the run was when this session took it up
	report *Report
	// target is the runtime to be on in the end, and proof the phase that brings the node there.
	target string
	proof  protocol.Phase
	// back is set for a rollback.
	back *wayBack

	held *claim.Claim
	// node changes the node's state.
	node *nodestate.Editor
	// watch knows node and pods, and runner looks there.
	watch    *nodewatch.Watch
	runner   *nodejob.Runner
	follower *nodejob.Follower
	// namespace is as this session has opened it.
	namespace *corev1.Namespace
	images    []string
	endpoint  string // the new runtime's, as the agent found it
	oldEnd    string // the old runtime's
	old       string // the old runtime's name
	// before are the DaemonSets and static pods that were ready on the node before the cutover; nil where nobody looked.
	before map[string]bool
	// leaving are the pods that were being deleted on the node before the cutover; nil where nobody looked.
	leaving    map[types.UID]bool
	beat       time.Time // the last heartbeat that was seen before the cutover
	cordonedAt time.Time
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
	// heard: the agent has spoken.
	heard bool

	mu       sync.Mutex
	stage    Stage
	began    time.Time
	progress bytes.Buffer // what was observed, for the evidence
}

// Switch moves one node to containerd, or goes on with what an earlier run began. The node has passed the preflight. An error is
// an *Error, except for what fails before the node is claimed. The report is never nil.
func (r *Rollout) Switch(ctx context.Context, name string) (*Report, error) {
	s := &session{
		Rollout: r, name: name, report: &Report{Node: name},
		target: inventory.RuntimeContainerd, proof: protocol.PhaseCutover,
	}
	return s.report, s.holding(ctx, s.mark, s.switchNode)
}

// holding claims the node, marks it, and does the work while it has the claim.
func (s *session) holding(ctx context.Context, mark, work func(context.Context) error) error {
	s.watch = nodewatch.New(s.client, s.clock, s.name)
	s.runner = s.Rollout.runner.For(s.watch)
	s.follower = s.runner.NewFollower(s.onEvent, func(text string) { s.tell(Info, "%s", text) })
	ctx, stop := context.WithCancel(ctx) // the watch
	defer stop()
	ctx, err := s.claim(ctx, mark)
	if err != nil {
		return err
	}
	defer func() {
		undo, cancel := s.undoContext(ctx)
		defer cancel()
		if !s.held.IsLost() && !leavesRunOpen(err) { // before the claim is released: the next run opens it again
			if closeErr := s.closeNamespace(undo, openKey(s.name), s.namespace); closeErr != nil {
				s.tell(Warning, "%s", closeErr)
			}
		}
		if releaseErr := s.held.Release(undo); releaseErr != nil {
			s.tell(Warning, "%s", releaseErr)
		}
	}()
	err = work(ctx)
	if s.isWorthEvidence(ctx, err) {
		s.report.Evidence = s.gather(ctx, err)
	}
	return err
}

// isWorthEvidence tells whether a failure is one to look into: the host had a part in it, or the node is left for a person.
func (s *session) isWorthEvidence(ctx context.Context, err error) bool {
	var failed *Error
	if ctx.Err() != nil || !errors.As(err, &failed) {
		return false
	}
	switch failed.Outcome {
	case OutcomeStuck:
		return true
	case OutcomeRefused, OutcomeRolledBack, OutcomeFailed:
		return s.heard
	default:
		return false
	}
}

// stageWork is a stage and what it consists of.
type stageWork struct {
	stage Stage
	run   func(context.Context) error
	skip  bool
}

// walk goes through stages until one fails.
func (s *session) walk(ctx context.Context, stages []stageWork) error {
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

// switchNode walks through the stages that are left.
func (s *session) switchNode(ctx context.Context) error {
	late := s.state == nodestate.StateCutover || s.state == nodestate.StateVerifying
	err := s.walk(ctx, []stageWork{
		{StagePrepare, s.prepare, late},
		{StageDrain, s.drain, late},
		{StageCutover, s.cutover, s.state == nodestate.StateVerifying},
		{StageVerify, s.verify, false},
		{StageUncordon, s.giveBack, false},
		{StageSoak, s.soak, s.options.Soak <= 0},
	})
	if s.disproved != nil {
		return s.inStage(ctx, StageRollback, s.rollback)
	}
	return err
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
	s.note(update)
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
	case s.back != nil && event.Phase != protocol.PhaseRollback:
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
		s.endpoint, s.oldEnd = event.Facts.NewEndpoint, event.Facts.OldEndpoint
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

// claim takes the Lease, finds out whether there is a run to go on with, and marks the node.
func (s *session) claim(ctx context.Context, mark func(context.Context) error) (context.Context, error) {
	began := s.begin(StageClaim)
	claimed, err := s.takeAndMark(ctx, mark)
	s.end(StageClaim, began, err)
	if err != nil {
		return nil, &Error{
			Node: s.name, Stage: StageClaim, Outcome: refusedOrInterrupted(ctx), State: "nothing was changed", Hint: admissionHint(err), Cause: err,
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

func (s *session) takeAndMark(ctx context.Context, mark func(context.Context) error) (context.Context, error) {
	namespace, err := s.ensureNamespace(ctx)
	if err != nil {
		return nil, err
	}
	s.run, s.canary = newRun(s.clock.Now()), newRun(s.clock.Now())
	operation := claim.Switch
	if s.back != nil {
		operation = claim.Rollback
	}
	held, claimed, err := s.claims.Take(ctx, s.name, s.run, operation, func(text string) { s.tell(Info, "%s", text) })
	if err != nil {
		return nil, err
	}
	s.held = held
	s.node = &nodestate.Editor{Client: s.client, Node: s.name, Claim: held, Seen: s.watch.Node, Retry: s.retry}
	if held.Dead != nil {
		s.tell(Info, "took the node over: %s, but nobody has renewed that claim, which ended at %s", held.Dead, held.Dead.Until.Local().Format("15:04:05"))
	}
	opened := false
	s.namespace, opened, err = s.openNamespace(claimed, namespace, openKey(s.name), s.name)
	if err == nil {
		err = mark(claimed)
	}
	if err != nil {
		undo, cancel := s.undoContext(ctx)
		defer cancel()
		if opened {
			err = errors.Join(err, s.closeNamespace(undo, openKey(s.name), nil))
		}
		return nil, errors.Join(err, held.Release(undo))
	}
	return claimed, nil
}

// mark reads the node once the claim is held, since nobody else changes its state then.
func (s *session) mark(ctx context.Context) error {
	node, err := s.getNode(ctx, s.name)
	if err != nil {
		return err
	}
	// Another run may have come and gone since the preflight, while a question was open or another node was switched.
	if finding := judge(node); finding.Verdict == Refuse || finding.Verdict == Skip {
		return errors.New(finding.Reason)
	}
	s.watch.Start(ctx, node)
	row := inventory.FromNode(node)
	s.old = inventory.RuntimeDocker
	s.beat = heartbeat(node)
	resumes := row.Switch.Open() && row.Run != ""
	wasUnschedulable := ""
	if resumes {
		why, err := s.whyAnew(ctx, node)
		if err != nil {
			return err
		}
		if resumes = why == ""; !resumes {
			s.tell(Info, "beginning anew: %s", why)
			wasUnschedulable = nodestate.Read(node).WasUnschedulable // a cordon of that run is ours to undo
		}
	}
	if resumes {
		s.run, s.state, s.from = row.Run, row.Switch, row.From
		s.report.Resumed = true
		s.unproven = nodestate.Read(node).FailedBefore
		s.tell(Info, "going on with run %s, whose state is %s", s.run, s.state)
	} else {
		s.from = row.Reported
	}
	// Where the host may have begun, nothing is refused any more.
	if err := s.tryAdmission(ctx, protocol.PhasePrepare); err != nil && (!resumes || isPreparedOnly(s.state, row.Reported)) {
		return err
	}
	if !resumes {
		if err := s.remove(ctx); err != nil {
			return err
		}
		_, err := s.node.Annotate(ctx, nodestate.Begun(s.run, s.from, inventory.RuntimeContainerd, s.options.Image, wasUnschedulable))
		if err != nil {
			return err
		}
	}
	s.report.Run, s.report.From = s.run, s.from
	return nil
}

// spec is what the agent is asked to do.
func (s *session) spec(phase protocol.Phase) protocol.Spec {
	return protocol.Spec{
		Version: protocol.Version, Run: s.run, Node: s.name, Phase: phase, Image: cmp.Or(s.image, s.options.Image),
		CutoverSeconds: max(1, int(s.options.CutoverTimeout/time.Second)), KeepDocker: s.options.KeepDocker, Images: s.images,
		ImageSet: s.options.ImageSet, VerifyImages: s.options.VerifyImages, ContainerdArchive: s.options.ContainerdArchive,
		ContainerdArchiveSHA256: s.options.ContainerdArchiveSHA256,
	}
}

// ensureJob has the phase's Job created.
func (s *session) ensureJob(ctx context.Context, spec protocol.Spec) error {
	return s.ensure(ctx, s.params(spec))
}

// params are those of a phase's Job.
func (s *session) params(spec protocol.Spec) nodejob.Params {
	return nodejob.Params{Spec: spec, PullPolicy: s.options.PullPolicy, Pod: s.options.Pod, Image: s.options.Image}
}

func (s *session) ensure(ctx context.Context, params nodejob.Params) error {
	job, err := nodejob.Job(params)
	if err != nil {
		return err
	}
	if err := s.keepClaim(ctx); err != nil {
		return err
	}
	return s.runner.Ensure(ctx, job)
}

// keepClaim makes sure that the claim is still this session's.
func (s *session) keepClaim(ctx context.Context) error {
	return s.retry(ctx, func() error { return s.held.Keep(ctx) })
}

// proveClaim has the API server say so now.
func (s *session) proveClaim(ctx context.Context) error {
	return s.retry(ctx, func() error { return s.held.Prove(ctx) })
}

// remove deletes the node's Jobs and canaries, or only those of some phases.
func (s *session) remove(ctx context.Context, phases ...protocol.Phase) error {
	return s.retry(ctx, func() error {
		if err := s.held.Keep(ctx); err != nil {
			return err
		}
		return s.runner.Remove(ctx, s.name, phases...)
	})
}

// removeJob deletes one Job of the run.
func (s *session) removeJob(ctx context.Context, phase protocol.Phase) error {
	return s.retry(ctx, func() error {
		if err := s.held.Keep(ctx); err != nil {
			return err
		}
		return s.runner.RemoveJob(ctx, s.spec(phase))
	})
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
