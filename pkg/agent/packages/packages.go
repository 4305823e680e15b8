// Package packages drives the host's package manager: apt, dnf or yum, zypper. It says what a command would do, from the manager's own
// simulation, judges whether that leaves alone what a running Docker needs, and does it without a question. It never adds a
// repository, and never removes a package but those that its caller names.
//
// The step containerd-install calls it. Where a manager's output is parsed, its tests hold what real ones print.
package packages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// Package is a package whose version changes.
type Package struct {
	Name string `json:"name"`
	// Old is the version from before, empty for one that was not installed; New that from after, empty for one that goes.
	// Both as the manager writes them.
	Old string `json:"old,omitempty"`
	New string `json:"new,omitempty"`
}

// Transaction is what a manager's command would do.
type Transaction struct {
	Install   []Package `json:"install,omitempty"`
	Upgrade   []Package `json:"upgrade,omitempty"`
	Downgrade []Package `json:"downgrade,omitempty"`
	Remove    []Package `json:"remove,omitempty"`
}

// Empty reports whether nothing would change.
func (t Transaction) Empty() bool {
	return len(t.Install)+len(t.Upgrade)+len(t.Downgrade)+len(t.Remove) == 0
}

// String lists what would change: "containerd 1.6.20-1, runc 1.1.5-1 (was 1.0.0-1)".
func (t Transaction) String() string {
	var words []string
	for _, p := range slices.Concat(t.Install, t.Upgrade, t.Downgrade) {
		word := p.Name + " " + p.New
		if p.Old != "" {
			word += " (was " + p.Old + ")"
		}
		words = append(words, word)
	}
	for _, p := range t.Remove {
		words = append(words, "without "+p.Name)
	}
	return strings.Join(words, ", ")
}

// replaceable may be upgraded beside the package that is asked for: what a new containerd needs, and what a running container does not
// notice. Its shim has runc's and libseccomp's code only while it starts something.
var replaceable = []string{"runc", "libseccomp", "libseccomp2"}

// foreignPrefixes begin the names of packages that nobody asked for.
var foreignPrefixes = []string{"docker", "moby", "kube", "cri-", "podman", "buildah", "systemd"}

// Judge returns why a transaction that is to bring the package name is not to be made on a node that serves with Docker, nil if it may
// be: it removes nothing, downgrades nothing, and upgrades only that package and what belongs to it.
func (t Transaction) Judge(name string) error {
	names := func(list []Package) string {
		var out []string
		for _, p := range list {
			out = append(out, p.Name)
		}
		return strings.Join(out, ", ")
	}
	other := slices.DeleteFunc(slices.Clone(t.Upgrade), func(p Package) bool {
		return p.Name == name || slices.Contains(replaceable, p.Name)
	})
	foreign := slices.DeleteFunc(slices.Clone(t.Install), func(p Package) bool {
		return !slices.ContainsFunc(foreignPrefixes, func(prefix string) bool { return strings.HasPrefix(p.Name, prefix) })
	})
	switch {
	case len(t.Remove) > 0:
		return fmt.Errorf("it would remove %s", names(t.Remove))
	case len(t.Downgrade) > 0:
		return fmt.Errorf("it would downgrade %s", names(t.Downgrade))
	case len(other) > 0:
		return fmt.Errorf("it would upgrade %s, too", names(other))
	case len(foreign) > 0:
		return fmt.Errorf("it would install %s, too", names(foreign))
	case !slices.ContainsFunc(slices.Concat(t.Install, t.Upgrade), func(p Package) bool { return p.Name == name }):
		return errors.New("it would not install it")
	}
	return nil
}

// Manager is one package manager. Methods that change the host wait for its lock, ask nothing, can be repeated after a kill at any
// instant, and restart no service but those of the packages themselves.
type Manager interface {
	// Name is the program's: apt, dnf, yum, zypper.
	Name() string
	// Versions lists what the configured repositories have of a package, the one to prefer first; none if they do not know it.
	Versions(ctx context.Context, name string) ([]string, error)
	// ListsFrom is when the lists were fetched that Versions and Simulate go by, as well as the host tells it.
	ListsFrom() time.Time
	// Installed returns a package's version, empty if nothing is there of it, and whether it is there in whole: a manager that was killed
	// leaves some half-way.
	Installed(ctx context.Context, name string) (version string, whole bool, err error)
	// Owner returns the package that a file belongs to, empty if none has it.
	Owner(ctx context.Context, path string) (string, error)
	// Simulate says what Install of one version would do; an error if the manager would not do it.
	Simulate(ctx context.Context, name, version string) (Transaction, error)
	// SimulateRemove says what Remove would do.
	SimulateRemove(ctx context.Context, names []string) (Transaction, error)
	// Mend ends what the manager was in the middle of when it was killed.
	Mend(ctx context.Context) error
	// Keep makes sure that Restore can bring back the old versions of packages, and returns the files that it kept in dir for that: none where
	// the manager cannot keep any.
	Keep(ctx context.Context, dir string, packages []Package) ([]Kept, error)
	// Restorable returns why Restore cannot bring back the old versions, nil where nothing is known to be in its way.
	Restorable(ctx context.Context, dir string, packages []Package) error
	// Install brings packages to their new versions, and nothing else: it refuses to remove any.
	Install(ctx context.Context, packages []Package) error
	// Restore brings packages back to their old versions, from what Keep kept.
	Restore(ctx context.Context, dir string, packages []Package) error
	// Remove removes packages; purge takes along configuration that came with them, where the manager leaves it otherwise.
	Remove(ctx context.Context, names []string, purge bool) error
}

// Find returns the host's package manager, nil if it has none that is known. tell takes what a person who waits should know. With
// readOnly it takes the lists that are on the host as they are, and is only good for questions.
func Find(run host.Runner, look func(program string) (path string, err error), tell func(text string), readOnly bool) Manager {
	has := func(program string) bool { _, err := look(program); return err == nil }
	r := runner{Runner: run, tell: tell, pause: 2 * time.Second, fetched: new(bool), readOnly: readOnly}
	switch {
	case has("apt-get") && has("dpkg-query"):
		return synced{apt{r}}
	case has("zypper") && has("rpm"):
		return synced{zypper{r}}
	case has("dnf") && has("rpm"):
		return synced{dnf{r, "dnf"}}
	case has("yum") && has("rpm"):
		return synced{dnf{r, "yum"}}
	}
	return nil
}

// Upstream is the upstream part of a package's version: without epoch and the distribution's revision.
func Upstream(version string) string {
	if _, after, ok := strings.Cut(version, ":"); ok {
		version = after
	}
	if i := strings.LastIndexByte(version, '-'); i > 0 {
		version = version[:i]
	}
	return version
}

const (
	// lookTime bounds a question, which may have to fetch the repositories' lists.
	lookTime = 3 * time.Minute
	// changeTime bounds a change, the wait for the lock and the download included.
	changeTime = 10 * time.Minute
	// lockTime bounds the wait for another package manager.
	lockTime = 5 * time.Minute
)

type runner struct {
	host.Runner
	tell  func(string)
	pause time.Duration
	// fetched notes that the lists are as new as they can be.
	fetched *bool
	// readOnly: nothing may be written.
	readOnly bool
}

// newest is the latest time at which one of the files and directories that patterns name was written; zero if there is none.
func newest(patterns ...string) time.Time {
	var latest time.Time
	for _, pattern := range patterns {
		paths, _ := filepath.Glob(pattern) // a pattern that is wrong matches nothing
		for _, path := range paths {
			if info, err := os.Stat(path); err == nil && info.ModTime().After(latest) {
				latest = info.ModTime()
			}
		}
	}
	return latest
}

// run runs a command in an environment in which nothing asks and nothing restarts services (needrestart(1)), and waits while another
// package manager holds the lock.
func (r runner) run(ctx context.Context, timeout time.Duration, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	args := append([]string{
		"LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", "DEBCONF_NONINTERACTIVE_SEEN=true", "APT_LISTCHANGES_FRONTEND=none", "UCF_FORCE_CONFFOLD=1",
		"NEEDRESTART_MODE=l", "NEEDRESTART_SUSPEND=1", "ZYPP_LOCK_TIMEOUT=120",
	}, command...)
	var out string
	told := false
	end := time.Now().Add(lockTime)
	err := host.Poll(ctx, r.pause, func(ctx context.Context) (err error) {
		out, err = r.Run(ctx, "env", args...)
		if err == nil || !locked(err) || time.Now().After(end) {
			if err != nil {
				err = host.Permanent(err)
			}
			return err
		}
		if !told && r.tell != nil {
			r.tell("wait for another package manager to end")
			told = true
		}
		return err
	})
	return out, err
}

// locked reports whether a manager failed since another one is at work: apt's and dpkg's words, zypper's.
func locked(err error) bool {
	text := detail(err)
	return slices.ContainsFunc([]string{
		"Could not get lock ", "Unable to lock ", "dpkg frontend lock", "is locked by another process", "System management is locked",
	}, func(sign string) bool { return strings.Contains(text, sign) })
}

func detail(err error) string {
	var command *host.CommandError
	if errors.As(err, &command) {
		return command.Output
	}
	return ""
}

// said is an error with the line in which a manager gives its reason.
func said(err error, prefixes ...string) error {
	for line := range strings.Lines(detail(err)) {
		for _, prefix := range prefixes {
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok && strings.TrimSpace(text) != "" {
				return &managerError{reason: strings.TrimSpace(text), err: err}
			}
		}
	}
	return err
}

type managerError struct {
	reason string
	err    error
}

func (e *managerError) Error() string  { return e.reason }
func (e *managerError) Unwrap() error  { return e.err }
func (e *managerError) Detail() string { return detail(e.err) }

// targets are names with versions as the manager takes them.
func targets(packages []Package, separator string, version func(Package) string) []string {
	var out []string
	for _, p := range packages {
		out = append(out, p.Name+separator+version(p))
	}
	return out
}

func newVersion(p Package) string { return p.New }
func oldVersion(p Package) string { return p.Old }
