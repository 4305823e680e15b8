// Package supervise is what the agent does in the Job's pod: it installs the agent on the host, asks the host unit for one phase,
// and copies the events to the pod's log until the phase has its result. It does none of the work, so that it can be
// killed at any time; started again, it follows on.
//
// It is called with the host's root as its own root directory (see cmd/runtime-agent), so that symbolic links and programs of
// the host mean what they mean there.
package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/unit"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/redact"
)

// Supervisor follows one phase of one run.
type Supervisor struct {
	Spec    protocol.Spec
	Layout  unit.Layout
	Systemd host.Systemd
	// Program is the agent's own program, to be copied to the host.
	Program io.ReaderAt
	Size    int64
	// Out gets the events, one JSON object a line; Err what the pod itself has to say.
	Out, Err io.Writer
	// Interval is the pause between two looks at the event file; zero means 200 ms.
	Interval time.Duration
	// AliveEvery is the pause between two signs of life; zero means protocol.AliveEvery.
	AliveEvery time.Duration
	// Wait: the phase is not asked for before Ask was called, in this pod or any other on this host.
	Wait bool

	// unfiled is a result that no file on the host holds.
	unfiled *protocol.Event
}

const (
	// maxWait ends a pod that nobody asked for anything: whoever had it started may be gone.
	maxWait = time.Hour
	// waitInterval is the pause between two looks whether the phase was asked for: the node is out of service when it is.
	waitInterval = 50 * time.Millisecond
)

// Run returns the phase's result. After a cutover that succeeded it is that of the verification, which the same pod asks for: it has come
// back on the new runtime, and another pod would cost the kubelet requests while the node is out of service. An error means
// that the result is not known: the Job has to start the pod again.
func (s *Supervisor) Run(ctx context.Context) (protocol.Result, error) {
	if s.Interval == 0 {
		s.Interval = 200 * time.Millisecond
	}
	if s.AliveEvery == 0 {
		s.AliveEvery = protocol.AliveEvery
	}
	if !host.Booted(s.Layout.Root) {
		return s.refuse("this host does not run systemd", "replace the node: the switch needs systemd on it", nil)
	}
	if s.Wait {
		if asked, err := s.awaitAsk(ctx); err != nil || !asked {
			return protocol.Result{}, err
		}
	}
	tail := s.newTail()
	result, err := s.runPhase(ctx, tail)
	if err == nil && s.Spec.Phase == protocol.PhaseCutover && result.Outcome == protocol.OutcomeSucceeded {
		s.Spec.Phase = protocol.PhaseVerify
		result, err = s.runPhase(ctx, tail)
	}
	return result, err
}

// awaitAsk reports whether the phase was asked for; it was not after maxWait.
func (s *Supervisor) awaitAsk(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, maxWait, errNotAsked)
	defer cancel()
	ticker := time.NewTicker(waitInterval)
	defer ticker.Stop()
	for {
		if _, asked, err := s.Layout.Requests().Spec(s.Spec.Run, s.Spec.Phase); err != nil || asked {
			return asked, err
		}
		select {
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), errNotAsked) {
				return false, nil
			}
			return false, fmt.Errorf("wait to be asked for the %s of run %s: %w", s.Spec.Phase, s.Spec.Run, ctx.Err())
		case <-ticker.C:
		}
	}
}

var errNotAsked = errors.New("not asked")

// Ask lets the pod that waits go on, for good: from then on nobody has to do anything for the host to begin. It is an error where the pod
// would refuse the phase.
func (s *Supervisor) Ask() error {
	if result, err := s.newTail().copy(io.Discard); err != nil || result != nil {
		return err
	}
	refused, err := s.otherRun()
	if err != nil {
		return err
	}
	if refused != nil {
		return errors.New(refused.Message)
	}
	return s.Layout.Requests().Ask(s.Spec)
}

func (s *Supervisor) newTail() *tail {
	return &tail{
		path: filepath.Join(s.Layout.RunDir(s.Spec.Run), journal.EventsName), phase: s.Spec.Phase, results: map[protocol.Phase]*protocol.Result{},
	}
}

// runPhase has the host do the phase of the Spec, unless it is done.
func (s *Supervisor) runPhase(ctx context.Context, tail *tail) (protocol.Result, error) {
	tail.phase = s.Spec.Phase
	if s.Spec.Phase == protocol.PhaseRollback {
		if result, err := s.beginRollback(tail); err != nil || result != nil {
			return deref(result), err
		}
	}
	if result, err := tail.copy(s.Out); err != nil || result != nil {
		return deref(result), err
	}
	if result, err := s.otherRun(); err != nil || result != nil {
		return deref(result), err
	}
	program, err := s.install()
	if err != nil {
		return protocol.Result{}, err
	}
	ask := s.Layout.Requests().Ask
	if s.Spec.Phase == protocol.PhaseRollback && tail.after > 0 {
		ask = s.Layout.Requests().AskAgain // an earlier attempt failed, and this one has no result yet
	}
	if err := ask(s.Spec); err != nil {
		return protocol.Result{}, err
	}
	if err := s.Layout.SetCurrent(s.Spec.Run); err != nil {
		return protocol.Result{}, err
	}
	return s.follow(ctx, tail, program)
}

func deref(r *protocol.Result) protocol.Result {
	if r == nil {
		return protocol.Result{}
	}
	return *r
}

// otherRun refuses to begin beside a run that has not ended. It goes on by itself.
func (s *Supervisor) otherRun() (*protocol.Result, error) {
	current, err := s.Layout.Find()
	if err != nil {
		return s.unusable(err)
	}
	if current == "" || current == s.Spec.Run {
		_, _, err := journal.Read(s.Layout.RunDir(s.Spec.Run))
		return s.unusable(err)
	}
	_, records, err := journal.Read(s.Layout.RunDir(current))
	if err != nil {
		return s.unusable(err)
	}
	phase, open := engine.Open(records)
	if !open {
		return nil, nil
	}
	result, err := s.refuse(fmt.Sprintf("run %s of this node is not over: its phase %s is open", current, phase),
		"wait for it, or on the node: "+s.installed()+" status", nil)
	return &result, err
}

// unusable refuses to work with a journal that tells nothing: the next pod would not find it any better. A phase that has begun is no
// longer refused, since the host may stand anywhere in it.
func (s *Supervisor) unusable(err error) (*protocol.Result, error) {
	if !errors.Is(err, journal.ErrUnusable) {
		return nil, err
	}
	hint := ""
	var hinted interface {
		error
		Hint() string
	}
	if errors.As(err, &hinted) {
		hint = "on the node: " + hinted.Hint()
	}
	begun := false
	if err := s.eachEvent(func(event protocol.Event) {
		if event.Phase == s.Spec.Phase {
			begun = event.Result == nil
		}
	}); err != nil {
		return nil, err
	}
	outcome := protocol.OutcomeRefused
	if begun && s.Spec.Phase != protocol.PhasePrepare {
		outcome = protocol.OutcomeBroken
	}
	result, err := s.report(outcome, err.Error(), hint, err)
	return &result, err
}

// beginRollback refuses to undo what this host knows nothing of: with an empty journal, nothing would be undone and that would be
// called a success. It leaves out what earlier attempts have reported.
func (s *Supervisor) beginRollback(t *tail) (*protocol.Result, error) {
	_, records, err := journal.Read(s.Layout.RunDir(s.Spec.Run))
	if err != nil {
		return s.unusable(err)
	}
	if len(records) == 0 {
		result, err := s.refuse(fmt.Sprintf("this host has no journal of run %s, so that there is nothing to undo", s.Spec.Run),
			"it was removed by hand or with the host, or the run never began here: look into "+host.Dir+"/runs on the node", nil)
		return &result, err
	}
	if s.Spec.Attempt == "" {
		return nil, nil
	}
	var failed int64
	if err := s.eachEvent(func(event protocol.Event) {
		if event.Result != nil && event.Phase == protocol.PhaseRollback {
			failed = 0
			if event.Result.Outcome != protocol.OutcomeSucceeded {
				failed = event.Seq
			}
		}
	}); err != nil {
		return nil, err
	}
	t.after, err = s.Layout.Requests().Attempt(s.Spec.Run, s.Spec.Attempt, failed)
	return nil, err
}

// eachEvent calls do with all events of the run, none if there is no file.
func (s *Supervisor) eachEvent(do func(protocol.Event)) error {
	data, err := os.ReadFile(filepath.Join(s.Layout.RunDir(s.Spec.Run), journal.EventsName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read events: %w", err)
	}
	for line := range bytes.SplitSeq(data, []byte("\n")) {
		if event, err := protocol.DecodeEvent(line); err == nil {
			do(event)
		}
	}
	return nil
}

const (
	// lookEvery is how often the unit is looked at, and started if it does not run although the phase has no result.
	lookEvery = 3 * time.Second
	// maxStarts bounds the starts without a new event in between.
	maxStarts = 5
)

// follow copies events until the result, and keeps the unit going.
func (s *Supervisor) follow(ctx context.Context, t *tail, program string) (protocol.Result, error) {
	ticker := time.NewTicker(s.Interval)
	defer ticker.Stop()
	var looked time.Time
	said := time.Now()
	starts, seen := 0, t.offset
	for {
		result, err := t.copy(s.Out)
		if err != nil || result != nil {
			return deref(result), err
		}
		if time.Since(looked) >= lookEvery {
			looked = time.Now()
			if t.offset != seen {
				starts, seen = 0, t.offset
			}
			state, err := s.Systemd.State(ctx, host.Unit)
			if err == nil && !state.Running() {
				// It may have ended because the phase is done: then the result is there by now.
				if result, err := t.copy(s.Out); err != nil || result != nil {
					return deref(result), err
				}
				starts++
				err = s.start(ctx, program)
			}
			if ctx.Err() == nil && (err != nil || starts > maxStarts) {
				return s.notRunning(ctx, err)
			}
		}
		if time.Since(said) >= s.AliveEvery {
			said = time.Now()
			if err := s.write(protocol.StillAlive(s.Spec, said)); err != nil {
				return protocol.Result{}, err
			}
		}
		select {
		case <-ctx.Done():
			return protocol.Result{}, fmt.Errorf("follow run %s: %w; the host goes on", s.Spec.Run, ctx.Err())
		case <-ticker.C:
		}
	}
}

func (s *Supervisor) start(ctx context.Context, program string) error {
	if err := unit.Install(ctx, s.Layout, s.Systemd, program); err != nil {
		return err
	}
	return host.StartNoWait(ctx, s.Systemd, host.Unit)
}

// notRunning ends the phase if it never began, and otherwise leaves it to the Job's next pod.
func (s *Supervisor) notRunning(ctx context.Context, cause error) (protocol.Result, error) {
	log := s.Systemd.Log(ctx, host.Unit)
	if cause == nil {
		cause = errors.New("it ends each time it is started")
	}
	err := &host.UnitError{Unit: host.Unit, Err: fmt.Errorf("run %s on the host: %w", host.Unit, cause), Log: log}
	_, records, readErr := journal.Read(s.Layout.RunDir(s.Spec.Run))
	if s.Spec.Phase != protocol.PhasePrepare || readErr != nil || len(records) > 0 {
		_, _ = fmt.Fprintln(s.Err, redact.String(log))
		return protocol.Result{}, err
	}
	// What is refused must not begin at the next boot. If it has begun after all, its result is awaited by the next pod.
	if withdrawErr := unit.Withdraw(ctx, s.Layout, s.Systemd, s.Spec.Run, s.Spec.Phase); withdrawErr != nil {
		return protocol.Result{}, errors.Join(err, withdrawErr)
	}
	return s.refuse(err.Error(), err.Hint(), err)
}

// tail copies the lines that were added to an event file.
type tail struct {
	path   string
	phase  protocol.Phase
	offset int64
	// results are those of the phases that have been read so far.
	results map[protocol.Phase]*protocol.Result
	// after is the last event of earlier attempts at the phase, which are left out.
	after int64
}

// copy writes what is new, whole lines only, and returns the phase's result once it is among it.
func (t *tail) copy(out io.Writer) (*protocol.Result, error) {
	file, err := os.Open(t.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("follow events: %w", err)
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.NewSectionReader(file, t.offset, 1<<62))
	if err != nil {
		return nil, fmt.Errorf("follow events: %w", err)
	}
	end := bytes.LastIndexByte(data, '\n') + 1
	var lines []byte
	for line := range bytes.Lines(data[:end]) {
		event, err := protocol.DecodeEvent(line)
		if err == nil && event.Phase == t.phase && event.Seq <= t.after {
			continue
		}
		lines = append(lines, line...)
		if err == nil && event.Result != nil {
			t.results[event.Phase] = event.Result
		}
	}
	if _, err := out.Write(lines); err != nil {
		return nil, fmt.Errorf("write events: %w", err)
	}
	t.offset += int64(end)
	return t.results[t.phase], nil
}

// binDirs are where the agent's program may go, the first of them that programs can be run from.
var binDirs = []string{host.Dir + "/bin", "/usr/local/lib/kubectl-runtime", "/opt/kubectl-runtime"}

// installed is where the agent's program lies on the host; where it would be put first, if it is not there.
func (s *Supervisor) installed() string {
	for _, dir := range binDirs {
		if path := filepath.Join(dir, "runtime-agent"); !host.Absent(filepath.Join(s.Layout.Root, path)) {
			return path
		}
	}
	return filepath.Join(binDirs[0], "runtime-agent")
}

// install copies the agent to the host, unless it is there already, and returns its path on the host.
func (s *Supervisor) install() (string, error) {
	if err := s.Layout.MakeDir(); err != nil {
		return "", fmt.Errorf("install the agent on the host: %w", err)
	}
	var errs []error
	for _, dir := range binDirs {
		real := filepath.Join(s.Layout.Root, dir)
		path := filepath.Join(dir, "runtime-agent")
		if err := os.MkdirAll(real, 0o755); err != nil { //nolint:gosec // programs are for all to read
			errs = append(errs, err)
			continue
		}
		if noexec(real) {
			errs = append(errs, fmt.Errorf("%s is on a file system mounted noexec", dir))
			host.RemoveDir(real)
			continue
		}
		if err := s.copyProgram(filepath.Join(s.Layout.Root, path)); err != nil {
			errs = append(errs, err)
			continue
		}
		return path, nil
	}
	return "", fmt.Errorf("install the agent on the host: %w", errors.Join(errs...))
}

func noexec(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Flags&unix.ST_NOEXEC != 0
}

func (s *Supervisor) copyProgram(path string) error {
	content := make([]byte, s.Size)
	if _, err := s.Program.ReadAt(content, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the agent's program: %w", err)
	}
	if now, err := os.ReadFile(path); err == nil && bytes.Equal(now, content) {
		return nil
	}
	if err := host.Replace(path, content, 0o755); err != nil {
		return err
	}
	// With SELinux, systemd may not run what has the label of /var/lib.
	if host.Absent(filepath.Join(s.Layout.Root, "/sys/fs/selinux/enforce")) {
		return nil
	}
	_ = unix.Lsetxattr(path, "security.selinux", []byte("system_u:object_r:bin_t:s0\x00"), 0)
	return nil
}
