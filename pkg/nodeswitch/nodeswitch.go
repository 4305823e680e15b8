// Package nodeswitch switches one node from Docker to containerd, or back, seen from the API: it claims the node, has the agent prepare it, drains
// it, follows the cutover that the host carries out by itself, verifies the result and gives the node back. Each stage has a file, and
// what a switch and a rollback do differently is their direction. All state is in the cluster (a Lease and annotations), so that any later run can
// resume it. The package knows no command line and prints nothing: what happens goes to an Observer.
package nodeswitch

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/jobnamespace"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/runevidence"
)

// Stage is a part of a node's switch.
type Stage string

// The stages, in their order. StageRollback takes the place of what follows a failure.
const (
	StageClaim    Stage = "claim"
	StagePrepare  Stage = "prepare"
	StageDrain    Stage = "drain"
	StageCutover  Stage = "cutover"
	StageVerify   Stage = "verify"
	StageUncordon Stage = "uncordon"
	StageSoak     Stage = "soak"
	StageRollback Stage = "rollback"
	// StageLook is a plan's look at a host.
	StageLook Stage = "look"
)

// Kind is what an Update tells.
type Kind int

// The kinds of updates.
const (
	// StageBegun and StageEnded frame a stage. A StageEnded with Failed set ended in an error.
	StageBegun Kind = iota
	StageEnded
	// Info and Warning are sentences.
	Info
	Warning
	// AgentStep is a change of a step on the node.
	AgentStep
)

// Update is one thing that happened.
type Update struct {
	Time  time.Time
	Node  string
	Stage Stage
	Kind  Kind
	// Text is a sentence without a full stop: of Info and Warning, and what a stage came to.
	Text   string
	Failed bool
	// Step is set for AgentStep.
	Step *protocol.Step
	// Elapsed is set for StageEnded.
	Elapsed time.Duration
}

// Observer gets what happens. It may be called from several goroutines.
type Observer interface {
	Observe(update Update)
}

// Options are what a user can choose; they are the same for all nodes.
type Options struct {
	Drain drain.Options
	// Image is the agent's, and the canary's where CanaryImage is empty.
	Image       string
	CanaryImage string
	PullPolicy  corev1.PullPolicy
	Pod         nodejob.PodOptions
	// CutoverTimeout bounds the cutover on the node itself, which then undoes it.
	CutoverTimeout time.Duration
	KeepDocker     bool
	// ContainerdArchive is the path of an archive on each node; empty if there is none.
	ContainerdArchive string
	// ContainerdArchiveSHA256 is the digest that it has to have, in lower-case hexadecimal digits; empty if there is none.
	ContainerdArchiveSHA256 string
	// ImageSet tells which images are brought: one of protocol.ImageSets.
	ImageSet string
	// VerifyImages has the node prove the content of every image that it adopted.
	VerifyImages bool
	// Soak is how long a node is watched after it is back in service.
	Soak time.Duration
}

// Switcher switches nodes.
type Switcher struct {
	// Admit, if set, is asked once a node's claim is held and before anything is changed. Its error refuses.
	Admit func(ctx context.Context, node string) error

	client   kubernetes.Interface
	runner   *nodejob.Runner
	options  Options
	observer Observer
	clock    clock.WithTicker
	// holder tells other runs whose claim it is: "alice@laptop", made unique by a suffix.
	holder    string
	claims    *claim.Claims
	workloads workloadImages
	// These are the constants but in tests.
	prepareTimeout, parkTimeout time.Duration
}

// Config is what a Switcher works with.
type Config struct {
	Client   kubernetes.Interface
	REST     *rest.Config
	Clock    clock.WithTicker
	Observer Observer
	Options  Options
	// Holder is unique among runs and tells people whose a run is.
	Holder string
}

// New makes a Switcher.
func New(c Config) *Switcher {
	c.Options.Drain.Keep = nodejob.Labels()
	if c.Options.CanaryImage == "" {
		c.Options.CanaryImage = c.Options.Image
	}
	return &Switcher{
		client:         c.Client,
		runner:         &nodejob.Runner{Client: c.Client, Config: c.REST, Clock: c.Clock},
		options:        c.Options,
		observer:       c.Observer,
		clock:          c.Clock,
		holder:         c.Holder,
		prepareTimeout: prepareTimeout, parkTimeout: parkTimeout,
		claims: &claim.Claims{Client: c.Client, Clock: c.Clock, Holder: c.Holder},
	}
}

// Claims are the Switcher's claims on nodes.
func (r *Switcher) Claims() *claim.Claims { return r.claims }

// EnsureNamespace creates this program's namespace where it is missing.
func (r *Switcher) EnsureNamespace(ctx context.Context) error {
	_, err := r.namespaces().Ensure(ctx)
	return err
}

// namespaces is this program's namespace, as the Switcher's user sees it.
func (r *Switcher) namespaces() jobnamespace.Namespace {
	return jobnamespace.Namespace{Client: r.client, Clock: r.clock}
}

// Preflight judges nodes before they are switched or rolled back.
func (r *Switcher) Preflight() *preflight.Checker {
	return &preflight.Checker{Client: r.client, Clock: r.clock, Claims: r.claims, Retry: r.retry, Drain: r.options.Drain, Image: r.options.Image}
}

// Report is what became of a node that was switched, or would be.
type Report struct {
	Node string
	// From and To are runtimes as nodeInfo spells them.
	From, To string
	Run      string
	Resumed  bool
	// Stages are the stages with their times, in order.
	Stages []StageTime
	// Steps are the agent's that were done, with their times, in order.
	Steps []StepTime
	// OutOfService is the time from our cordon to our uncordon; 0 if the node was not ours to uncordon.
	OutOfService time.Duration
	// Cordoned: the node is cordoned now, because it was before.
	Cordoned     bool
	ChangedFiles []string
	Warnings     []string
	// Evidence tells why it failed, where the host had a part in that.
	Evidence []runevidence.File
}

// StepTime is how long a step of the agent took.
type StepTime struct {
	Phase   protocol.Phase
	ID      string
	Elapsed time.Duration
}

// StageTime is how long a stage took.
type StageTime struct {
	Stage   Stage
	Elapsed time.Duration
}

// Outcome is how a switch that failed leaves its node.
type Outcome int

// The outcomes.
const (
	// OutcomeRefused: a check failed; the node serves on its old runtime as before.
	OutcomeRefused Outcome = iota
	// OutcomeRolledBack: it failed and was undone; the node is back in service on its old runtime.
	OutcomeRolledBack
	// OutcomeStuck: the node is left cordoned, or is not known to serve; a person is needed.
	OutcomeStuck
	// OutcomeTimeout: a time that the user gave ran out; the node is in service on its old runtime.
	OutcomeTimeout
	// OutcomeInterrupted: the user ended it. State says where the node stands.
	OutcomeInterrupted
	// OutcomeFailed: it failed before the cutover, though no check did; the node is in service on its old runtime.
	OutcomeFailed
)

// Error is a switch that failed.
type Error struct {
	Node    string
	Stage   Stage
	Outcome Outcome
	// State says where the node stands, a sentence without a full stop: cordoned or not, on which runtime.
	State string
	// Detail is captured output, Hint what a person can do, beyond running it again.
	Detail string
	Hint   string
	// Resumable: running the command again resumes the run.
	Resumable bool
	Cause     error
}

func (e *Error) Error() string {
	text := "node " + e.Node + ": " + string(e.Stage) + ": " + e.Cause.Error()
	if e.State != "" {
		text += "; " + e.State
	}
	return text
}

func (e *Error) Unwrap() error { return e.Cause }
