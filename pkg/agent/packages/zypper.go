package packages

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// zypper is that of SUSE.
type zypper struct{ runner }

func (zypper) Name() string { return "zypper" }

// stream is what zypper --xmlout prints, as far as it is needed.
type stream struct {
	Messages []struct {
		Type string `xml:"type,attr"`
		Text string `xml:",chardata"`
	} `xml:"message"`
	Problems []string   `xml:"prompt>description"`
	Found    []solvable `xml:"search-result>solvable-list>solvable"`
	Summary  *struct {
		Install    []solvable `xml:"to-install>solvable"`
		Upgrade    []solvable `xml:"to-upgrade>solvable"`
		Downgrade  []solvable `xml:"to-downgrade>solvable"`
		Remove     []solvable `xml:"to-remove>solvable"`
		ChangeArch []solvable `xml:"to-change-arch>solvable"`
	} `xml:"install-summary"`
}

type solvable struct {
	Name       string `xml:"name,attr"`
	Type       string `xml:"type,attr"`
	Kind       string `xml:"kind,attr"`
	Status     string `xml:"status,attr"`
	Edition    string `xml:"edition,attr"`
	OldEdition string `xml:"edition-old,attr"`
	Repository string `xml:"repository,attr"`
}

// noMatch is zypper's exit code where a search finds nothing (zypper(8), ZYPPER_EXIT_INF_CAP_NOT_FOUND).
const noMatch = 104

// With these codes zypper says that it did what was requested, and that updates, a reboot or a restart of itself are due.
const infoFirst, infoLast = 100, 103

func (z zypper) Versions(ctx context.Context, name string) ([]string, error) {
	out, err := z.ask(ctx, "search", "-s", "--match-exact", "-t", "package", name)
	if exitCode(err) == noMatch {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask zypper for versions of %s: %w", name, err)
	}
	var versions []string
	for _, s := range out.Found {
		if s.Name == name && s.Repository != "(System Packages)" && !slices.Contains(versions, s.Edition) {
			versions = append(versions, s.Edition)
		}
	}
	return versions, nil
}

// ListsFrom looks where zypper notes what it fetched.
func (zypper) ListsFrom() time.Time { return newest("/var/cache/zypp/raw/*/cookie") }

func (z zypper) ask(ctx context.Context, args ...string) (stream, error) {
	command := []string{"zypper", "--xmlout", "--non-interactive"}
	if z.readOnly {
		command = append(command, "--no-refresh")
	}
	out, err := z.run(ctx, lookTime, append(command, args...)...)
	if err != nil {
		return stream{}, zypperSaid(err)
	}
	return parseZypper(out)
}

func parseZypper(out string) (stream, error) {
	var s stream
	if err := xml.Unmarshal([]byte(out), &s); err != nil {
		return s, fmt.Errorf("read what zypper says: %w", err)
	}
	return s, nil
}

// zypperSaid takes the reason from zypper's own words.
func zypperSaid(err error) error {
	var command *host.CommandError
	if !errors.As(err, &command) {
		return err
	}
	text := command.Output
	if i := strings.LastIndex(text, "</stream>"); i >= 0 {
		text = text[:i+len("</stream>")]
	}
	s, perr := parseZypper(text)
	if perr != nil {
		return err
	}
	for _, problem := range s.Problems {
		line, _, _ := strings.Cut(strings.TrimSpace(problem), "\n")
		return &managerError{reason: strings.TrimPrefix(line, "Problem: "), err: err}
	}
	for _, m := range s.Messages {
		if m.Type == "error" {
			return &managerError{reason: strings.TrimSpace(m.Text), err: err}
		}
	}
	return err
}

func (z zypper) Installed(ctx context.Context, name string) (string, bool, error) {
	return rpmInstalled(ctx, z.runner, name)
}

func (z zypper) Owner(ctx context.Context, path string) (string, error) {
	return rpmOwner(ctx, z.runner, path)
}

func (z zypper) Simulate(ctx context.Context, name, version string) (Transaction, error) {
	return z.simulate(ctx, "install", "--dry-run", "--no-recommends", "--auto-agree-with-licenses", name+"="+version)
}

func (z zypper) SimulateRemove(ctx context.Context, names []string) (Transaction, error) {
	return z.simulate(ctx, append([]string{"remove", "--dry-run"}, names...)...)
}

func (z zypper) simulate(ctx context.Context, args ...string) (Transaction, error) {
	s, err := z.ask(ctx, args...)
	if err != nil {
		return Transaction{}, err
	}
	return s.transaction()
}

func (s stream) transaction() (Transaction, error) {
	if s.Summary == nil {
		return Transaction{}, errors.New("zypper does not say what it would do")
	}
	list := func(solvables []solvable) []Package {
		var out []Package
		for _, s := range solvables {
			out = append(out, Package{Name: s.Name, Old: s.OldEdition, New: s.Edition})
		}
		return out
	}
	t := Transaction{Install: list(s.Summary.Install), Upgrade: list(slices.Concat(s.Summary.Upgrade, s.Summary.ChangeArch)), Downgrade: list(s.Summary.Downgrade)}
	for _, s := range s.Summary.Remove {
		t.Remove = append(t.Remove, Package{Name: s.Name, Old: s.Edition})
	}
	return t, nil
}

// Mend does nothing: see dnf's.
func (z zypper) Mend(context.Context) error { return nil }

func (z zypper) Keep(ctx context.Context, _ string, packages []Package) ([]Kept, error) {
	return nil, haveOld(ctx, z, packages, true)
}

func (z zypper) Restorable(ctx context.Context, _ string, packages []Package) error {
	return haveOld(ctx, z, packages, false)
}

func (z zypper) Install(ctx context.Context, packages []Package) error {
	return z.change(ctx, append([]string{"install", "--no-recommends", "--auto-agree-with-licenses"}, targets(packages, "=", newVersion)...)...)
}

func (z zypper) Restore(ctx context.Context, _ string, packages []Package) error {
	return z.change(ctx, append([]string{"install", "--no-recommends", "--auto-agree-with-licenses", "--oldpackage"}, targets(packages, "=", oldVersion)...)...)
}

func (z zypper) Remove(ctx context.Context, names []string, _ bool) error {
	return z.change(ctx, append([]string{"remove"}, names...)...)
}

func (z zypper) change(ctx context.Context, args ...string) error {
	_, err := z.run(ctx, changeTime, append([]string{"zypper", "--xmlout", "--non-interactive"}, args...)...)
	if code := exitCode(err); err == nil || code >= infoFirst && code <= infoLast {
		return nil
	}
	if code := exitCode(err); err == nil || code >= infoFirst && code <= infoLast {
		return nil
	}
	return zypperSaid(err)
}
