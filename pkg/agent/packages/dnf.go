package packages

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// dnf is that of Fedora, RHEL and their like; program is dnf, which may be version 4 or 5, or yum.
type dnf struct {
	runner
	program string
}

func (d dnf) Name() string { return d.program }

// Versions are listed oldest first.
func (d dnf) Versions(ctx context.Context, name string) ([]string, error) {
	out, err := d.run(ctx, lookTime, append(d.asking(), "-q", "list", "--showduplicates", name)...)
	if err != nil {
		if strings.Contains(strings.ToLower(detail(err)), "no matching packages") {
			return nil, nil
		}
		return nil, fmt.Errorf("ask %s for versions of %s: %w", d.program, name, said(err, "Error: "))
	}
	return parseList(out, name), nil
}

// asking begins a command that changes nothing: with -C not even the cache of the repositories' lists.
func (d dnf) asking() []string {
	if d.readOnly {
		return []string{d.program, "-C"}
	}
	return []string{d.program}
}

// ListsFrom looks where dnf 4, dnf 5 and yum keep them.
func (dnf) ListsFrom() time.Time {
	return newest("/var/cache/dnf/*/repodata", "/var/cache/libdnf5/*/repodata", "/var/cache/yum/*/*/*/cachecookie")
}

func parseList(out, name string) []string {
	var versions []string
	available := false
	words := []string{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		switch text := strings.ToLower(strings.TrimSpace(line)); {
		case strings.HasPrefix(text, "installed packages") || strings.HasPrefix(text, "available packages"): // dnf 5 may say more
			available, words = strings.HasPrefix(text, "available"), nil
			continue
		case len(fields) == 0:
			continue
		}
		words = append(words, fields...) // a long name stands alone on its line
		if len(words) < 3 {
			continue
		}
		version := strings.TrimPrefix(words[1], "0:")
		if base, ok := cutArch(words[0]); available && ok && base == name && !slices.Contains(versions, version) {
			versions = append(versions, version)
		}
		words = nil
	}
	slices.Reverse(versions)
	return versions
}

// cutArch is the name in NAME.ARCH.
func cutArch(text string) (name string, ok bool) {
	i := strings.LastIndexByte(text, '.')
	if i < 0 {
		return text, false
	}
	return text[:i], true
}

func (d dnf) Installed(ctx context.Context, name string) (string, bool, error) {
	return rpmInstalled(ctx, d.runner, name)
}

func rpmInstalled(ctx context.Context, r runner, name string) (string, bool, error) {
	out, err := r.run(ctx, lookTime, "rpm", "-q", "--qf", "%{EPOCHNUM}:%{VERSION}-%{RELEASE}\n", name)
	if err != nil {
		if exitCode(err) == 1 {
			return "", false, nil
		}
		return "", false, fmt.Errorf("ask rpm for %s: %w", name, err)
	}
	version, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
	version = strings.TrimPrefix(version, "0:")
	return version, version != "", nil
}

func (d dnf) Owner(ctx context.Context, path string) (string, error) {
	return rpmOwner(ctx, d.runner, path)
}

func rpmOwner(ctx context.Context, r runner, path string) (string, error) {
	for _, path := range usrAliases(path) {
		out, err := r.run(ctx, lookTime, "rpm", "-q", "--qf", "%{NAME}\n", "-f", path)
		if err == nil {
			name, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
			return name, nil
		}
		if exitCode(err) != 1 {
			return "", fmt.Errorf("ask rpm for the owner of %s: %w", path, err)
		}
	}
	return "", nil
}

func (d dnf) Simulate(ctx context.Context, name, version string) (Transaction, error) {
	return d.simulate(ctx, "install", name+"-"+version)
}

func (d dnf) SimulateRemove(ctx context.Context, names []string) (Transaction, error) {
	return d.simulate(ctx, append([]string{"remove", keepUnused}, names...)...)
}

const (
	keepUnused = "--setopt=clean_requirements_on_remove=False"
	noWeakDeps = "--setopt=install_weak_deps=False"
)

// simulate answers the question whether to continue with no. Both that and a failure exit with 1.
func (d dnf) simulate(ctx context.Context, args ...string) (Transaction, error) {
	out, err := d.run(ctx, lookTime, append(append(d.asking(), "--assumeno", noWeakDeps), args...)...)
	text := out
	if err != nil {
		text = detail(err)
	}
	declined := strings.Contains(text, "Operation aborted") || strings.Contains(text, "Exiting on user command")
	if err != nil && !declined {
		return Transaction{}, said(err, "Error: ", "Problem: ")
	}
	t := parseDnf(text)
	if declined && t.Empty() {
		return Transaction{}, fmt.Errorf("%s says what it would do in a way that is not understood", d.program)
	}
	for i, p := range t.Upgrade { // dnf 4 and yum do not say it
		if p.Old == "" {
			if t.Upgrade[i].Old, _, err = d.Installed(ctx, p.Name); err != nil {
				return Transaction{}, err
			}
		}
	}
	return t, nil
}

// parseDnf reads the table of a transaction: headings such as "Installing dependencies:" (dnf) and "Installing for dependencies:" (yum),
// below each a line a package: NAME ARCH VERSION REPOSITORY SIZE, and below one that obsoletes others "replacing NAME.ARCH VERSION". With
// dnf 5 such a line also names the version before an upgrade. A name that is too long for its column stands on a line of its own.
func parseDnf(out string) Transaction {
	var t Transaction
	var list *[]Package
	var words []string
	headings := []struct {
		prefix string
		list   *[]Package
	}{
		{"Installing", &t.Install},
		{"Reinstalling", nil},
		{"Upgrading", &t.Upgrade},
		{"Updating", &t.Upgrade},
		{"Downgrading", &t.Downgrade},
		{"Removing", &t.Remove},
		{"Obsoleting", &t.Remove},
		{"Replacing", &t.Remove},
	}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if strings.HasPrefix(line, "Transaction Summary") {
			break
		}
		if text := strings.TrimSpace(line); !strings.HasPrefix(line, " ") {
			list, words = nil, nil
			for _, h := range headings {
				if strings.HasPrefix(text, h.prefix) && strings.HasSuffix(text, ":") {
					list = h.list
				}
			}
			continue
		}
		if len(fields) == 0 || list == nil {
			continue
		}
		if fields[0] == "replacing" && len(fields) >= 3 {
			replaced(&t, list, fields)
			continue
		}
		if words = append(words, fields...); len(words) < 4 {
			continue
		}
		p := Package{Name: words[0], New: strings.TrimPrefix(words[2], "0:")}
		if list == &t.Remove {
			p.Old, p.New = p.New, ""
		}
		*list = append(*list, p)
		words = nil
	}
	return t
}

// replaced is a line below a package: of the same name it is the version before, of another one what goes.
func replaced(t *Transaction, list *[]Package, fields []string) {
	name, ok := cutArch(fields[1])
	version := fields[2]
	if len(fields) > 3 { // dnf 5 has columns there, too
		name, ok, version = fields[1], true, fields[3]
	}
	version = strings.TrimPrefix(version, "0:")
	if last := len(*list) - 1; ok && last >= 0 && (*list)[last].Name == name && list != &t.Remove {
		(*list)[last].Old = version
		return
	}
	t.Remove = append(t.Remove, Package{Name: name, Old: version})
}

// Mend does nothing: rpm has no state in between that it could go on from, and the same transaction again completes it.
func (d dnf) Mend(context.Context) error { return nil }

// Keep can only look whether the repositories still have the old versions.
func (d dnf) Keep(ctx context.Context, _ string, packages []Package) ([]Kept, error) {
	return nil, haveOld(ctx, d, packages, true)
}

func (d dnf) Restorable(ctx context.Context, _ string, packages []Package) error {
	return haveOld(ctx, d, packages, false)
}

// haveOld looks whether the repositories have the old versions. Repositories that cannot be asked are an error where that has to be known.
func haveOld(ctx context.Context, m Manager, packages []Package, known bool) error {
	for _, p := range packages {
		versions, err := m.Versions(ctx, p.Name)
		if err != nil && !known && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return err
		}
		if p.Old == "" || !slices.Contains(versions, p.Old) {
			return fmt.Errorf("the repositories do not have %s %s any more", p.Name, p.Old)
		}
	}
	return nil
}

func (d dnf) Install(ctx context.Context, packages []Package) error {
	return d.change(ctx, "install", targets(packages, "-", newVersion)...)
}

func (d dnf) Restore(ctx context.Context, _ string, packages []Package) error {
	return d.change(ctx, "downgrade", targets(packages, "-", oldVersion)...)
}

func (d dnf) Remove(ctx context.Context, names []string, _ bool) error {
	return d.change(ctx, "remove", append([]string{keepUnused}, names...)...)
}

func (d dnf) change(ctx context.Context, verb string, args ...string) error {
	_, err := d.run(ctx, changeTime, append([]string{d.program, "-y", noWeakDeps, verb}, args...)...)
	return said(err, "Error: ", "Problem: ")
}
