// Package protocol is the versioned JSON that the plugin and the node agent exchange. It is the only package that both
// import, and it imports neither Kubernetes nor host libraries.
//
// The plugin hands a Spec to the agent's pod as one command line argument. The agent answers with Events: one JSON object
// a line, appended to a file on the host that outlives every pod, and copied from there to the pod's standard output,
// from the first event on, each time a pod starts. Readers drop what they have seen by Seq.
package protocol

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"time"
)

// Version is the version of Spec and Event. An agent refuses a Spec of another version, since it runs from an image that
// the operator can set by hand.
const Version = 1

// Phase is a part of a run, done by one Job.
type Phase string

// The phases. Prepare changes nothing that the node serves with; Cutover and Rollback are carried out by the host unit.
const (
	// PhasePrepare inspects the host, configures containerd, brings the images and rehearses; the node stays in service.
	PhasePrepare Phase = "prepare"
	// PhaseCutover stops the kubelet and the old runtime and starts the kubelet on the new one; the node is drained.
	PhaseCutover Phase = "cutover"
	// PhaseVerify repeats the read-only CRI checks.
	PhaseVerify Phase = "verify"
	// PhaseRollback undoes everything that the run's journal holds, newest first.
	PhaseRollback Phase = "rollback"
	// PhasePlan looks at the host and tells what a switch would find and do. It changes nothing there, and has no journal.
	PhasePlan Phase = "plan"
)

// Spec is what the plugin asks of the agent on one node.
type Spec struct {
	Version int `json:"version"`
	// Run identifies the switch of one node, over all its phases and all resumptions; see ParseRun.
	Run string `json:"run"`
	// Node is the Node object's name, which may differ from the host name.
	Node  string `json:"node"`
	Phase Phase  `json:"phase"`
	// Image is the agent's own image as the Job names it; it has to exist on the new runtime, too.
	Image string `json:"image"`
	// CutoverSeconds bounds the cutover on the node itself: later, the host unit undoes it.
	CutoverSeconds int `json:"cutoverSeconds"`
	// KeepDocker leaves Docker running for containers that Kubernetes does not manage.
	KeepDocker bool `json:"keepDocker,omitempty"`
	// Images are further image references that the node's pods use; the agent adds what Docker's containers use.
	Images []string `json:"images,omitempty"`
	// ImageSet tells which of Docker's images are brought: one of ImageSets; empty means ImagesUsed.
	ImageSet string `json:"imageSet,omitempty"`
	// ContainerdArchive is the path, on the node, of a release of containerd's, for hosts that cannot install it otherwise.
	ContainerdArchive string `json:"containerdArchive,omitempty"`
	// ContainerdArchiveSHA256 is the digest that the archive has to have, in lower-case hexadecimal digits; empty if the operator gave none.
	ContainerdArchiveSHA256 string `json:"containerdArchiveSHA256,omitempty"`
	// VerifyImages has every layer that was adopted compared with Docker's digest of it, which reads all its files.
	VerifyImages bool `json:"verifyImages,omitempty"`
	// Attempt tells a rollback from an earlier one of the same run that failed: any text, which all pods of one Job share.
	Attempt string `json:"attempt,omitempty"`
	// Pod is the Job's pod, filled in by the agent from the downward API: CNI plugins look up the rehearsal's sandbox under it.
	Pod PodRef `json:"pod,omitzero"`
}

// What Spec.ImageSet can be. The sandbox image and the agent's own are brought in any case: the rehearsal needs them.
const (
	ImagesUsed = "used" // what the node's pods use, and Spec.Images
	ImagesAll  = "all"  // all that Docker has
	ImagesNone = "none"
)

// ImageSets are the values of Spec.ImageSet.
func ImageSets() []string { return []string{ImagesUsed, ImagesAll, ImagesNone} }

// PodRef names a pod.
type PodRef struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

var sha256Form = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Validate reports what makes a Spec unusable.
func (s Spec) Validate() error {
	var errs []error
	if s.Version != Version {
		errs = append(errs, fmt.Errorf("spec: version %d is not %d: use the agent image of this plugin's release", s.Version, Version))
	}
	if _, err := ParseRun(s.Run); err != nil {
		errs = append(errs, fmt.Errorf("spec: %w", err))
	}
	if s.Node == "" {
		errs = append(errs, errors.New("spec: node is empty"))
	}
	switch s.Phase {
	case PhasePrepare, PhaseCutover, PhaseVerify, PhaseRollback, PhasePlan:
	default:
		errs = append(errs, fmt.Errorf("spec: unknown phase %q", s.Phase))
	}
	if s.ImageSet != "" && !slices.Contains(ImageSets(), s.ImageSet) {
		errs = append(errs, fmt.Errorf("spec: unknown image set %q", s.ImageSet))
	}
	if s.ContainerdArchive != "" && !path.IsAbs(s.ContainerdArchive) {
		errs = append(errs, fmt.Errorf("spec: the containerd archive %q is no absolute path", s.ContainerdArchive))
	}
	if s.ContainerdArchiveSHA256 != "" && (!sha256Form.MatchString(s.ContainerdArchiveSHA256) || s.ContainerdArchive == "") {
		errs = append(errs, fmt.Errorf("spec: %.80q is not the SHA-256 of an archive", s.ContainerdArchiveSHA256))
	}
	if s.CutoverSeconds <= 0 {
		errs = append(errs, fmt.Errorf("spec: cutoverSeconds %d is not positive", s.CutoverSeconds))
	}
	return errors.Join(errs...)
}

// StepState is the state of a step.
type StepState string

// The states of a step. A step's last event decides.
const (
	StepStarted      StepState = "started"
	StepProgress     StepState = "progress"
	StepDone         StepState = "done"
	StepSkipped      StepState = "skipped" // nothing to do on this host
	StepFailed       StepState = "failed"
	StepReverting    StepState = "reverting"
	StepReverted     StepState = "reverted"
	StepRevertFailed StepState = "revert-failed"
)

// Outcome is how a phase ended.
type Outcome string

// The outcomes. Each tells what runtime the node is on.
const (
	// OutcomeSucceeded: the phase did what it is for.
	OutcomeSucceeded Outcome = "succeeded"
	// OutcomeRefused: a check failed before anything was changed.
	OutcomeRefused Outcome = "refused"
	// OutcomeRolledBack: a step failed and everything was undone; the node is on the old runtime, as it was.
	OutcomeRolledBack Outcome = "rolled-back"
	// OutcomeBroken: undoing failed, too; a person is needed. Message says in which state the node is.
	OutcomeBroken Outcome = "broken"
)

// Event is one line of the agent's report. Exactly one of Step, Facts, Log, Result, Alive and of the plan's Finding, PlanStep and FileChange is set.
type Event struct {
	Version int `json:"v"`
	// Seq counts from 1 within a run, without gaps, over all its phases and restarts of the agent. It is 0 for Alive alone.
	Seq int64 `json:"seq"`
	// Time is UTC, on the node's clock.
	Time  time.Time `json:"time"`
	Run   string    `json:"run"`
	Phase Phase     `json:"phase"`

	Step   *Step   `json:"step,omitempty"`
	Facts  *Facts  `json:"facts,omitempty"`
	Log    *Log    `json:"log,omitempty"`
	Result *Result `json:"result,omitempty"`
	// Alive: the pod is there, and has nothing new to say. It is in the pod's log every AliveEvery, and not in the file on the host.
	Alive bool `json:"alive,omitempty"`

	Finding    *Finding    `json:"finding,omitempty"`
	PlanStep   *PlanStep   `json:"planStep,omitempty"`
	FileChange *FileChange `json:"fileChange,omitempty"`
}

// AliveEvery is how often a pod that follows the host says so. It is less than the time after which a reader takes a stream for dead.
const AliveEvery = 15 * time.Second

// StillAlive is the event that says so.
func StillAlive(spec Spec, now time.Time) Event {
	return Event{Version: Version, Time: now.UTC(), Run: spec.Run, Phase: spec.Phase, Alive: true}
}

// Step is a change of a step's state.
type Step struct {
	ID    string    `json:"id"`
	Title string    `json:"title"`
	State StepState `json:"state"`
	// Message says more: the reason of a skip or a failure, what was found or done.
	Message string `json:"message,omitempty"`
	// Done and Total count Unit ("images", "bytes"), where a step can tell how far it is.
	Done  int64  `json:"done,omitempty"`
	Total int64  `json:"total,omitempty"`
	Unit  string `json:"unit,omitempty"`
	// ElapsedMillis is the time since StepStarted or StepReverting, in the states that end one of these.
	ElapsedMillis int64 `json:"elapsedMillis,omitempty"`
}

// Facts is what the agent found on the host before it changed anything.
type Facts struct {
	OS             string `json:"os"`
	Kernel         string `json:"kernel"`
	KubeletVersion string `json:"kubeletVersion"`
	DockerVersion  string `json:"dockerVersion"`
	// ContainerdVersion is that of the containerd found, or of the one that will be installed, and ContainerdInstall then tells how.
	ContainerdVersion string `json:"containerdVersion"`
	ContainerdInstall string `json:"containerdInstall,omitempty"`
	// OldEndpoint is the CRI endpoint the kubelet uses, "dockershim" for the one inside a kubelet up to 1.23.
	OldEndpoint  string `json:"oldEndpoint"`
	NewEndpoint  string `json:"newEndpoint"`
	CgroupDriver string `json:"cgroupDriver"` // systemd or cgroupfs
	SandboxImage string `json:"sandboxImage"`
	DockerRoot   string `json:"dockerRoot"`
	// ForeignContainers are running containers that Kubernetes does not manage, by name.
	ForeignContainers []string `json:"foreignContainers,omitempty"`
	// Warnings are settings and conditions that the switch does not carry over, a sentence each.
	Warnings []string `json:"warnings,omitempty"`
}

// Log is a line for people.
type Log struct {
	Level   string `json:"level"` // info, warning
	Message string `json:"message"`
}

// Result ends a phase; it is the last event of that phase.
type Result struct {
	Outcome Outcome `json:"outcome"`
	// FailedStep is the ID of the step that failed, if one did.
	FailedStep string `json:"failedStep,omitempty"`
	// Message is one sentence; Detail the captured output behind it; Hint what a person can do.
	Message string `json:"message"`
	Detail  string `json:"detail,omitempty"`
	Hint    string `json:"hint,omitempty"`
	// RuntimeVersion is what the runtime that the node is left on calls itself, as in nodeInfo: "containerd://2.4.2".
	RuntimeVersion string `json:"runtimeVersion,omitempty"`
	// ElapsedMillis is the time of the whole phase.
	ElapsedMillis int64 `json:"elapsedMillis"`
	// ChangedFiles are the host files that differ from before, for the closing report.
	ChangedFiles []string `json:"changedFiles,omitempty"`
}

// maxLine bounds one event's JSON in bytes; kubelets split log lines at 16 KiB.
const maxLine = 15 << 10

// Encode renders e as one line with its newline, without secrets: whatever writes an event passes here. A Detail that would make the line
// longer than a kubelet's log line is cut
// at its beginning: the end of captured output is what tells.
func (e Event) Encode() ([]byte, error) {
	e = e.withoutSecrets()
	line, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode event %d: %w", e.Seq, err)
	}
	if over := len(line) - maxLine; over > 0 && e.Result != nil && e.Result.Detail != "" {
		result := *e.Result
		result.Detail = "…" + result.Detail[min(len(result.Detail), over+len("…")):]
		e.Result = &result
		if line, err = json.Marshal(e); err != nil {
			return nil, fmt.Errorf("encode event %d: %w", e.Seq, err)
		}
	}
	return append(line, '\n'), nil
}

// ErrNotEvent is returned for a line that is not an event: pods' logs may hold a runtime's own words.
var ErrNotEvent = errors.New("not an event")

// DecodeEvent reads one line. An event of another version is an error that names both versions.
func DecodeEvent(line []byte) (Event, error) {
	var e Event
	if err := json.Unmarshal(line, &e); err != nil || e.Seq == 0 && !e.Alive {
		return Event{}, ErrNotEvent
	}
	if e.Version != Version {
		return Event{}, fmt.Errorf("event %d: version %d is not %d: use the agent image of this plugin's release", e.Seq, e.Version, Version)
	}
	return e, nil
}
