package packages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// apt is that of Debian and Ubuntu.
type apt struct{ runner }

func (apt) Name() string { return "apt" }

// aptFiles is where apt keeps its lists, and in extended_states which packages were installed only because others need them.
const aptFiles = "/var/lib/apt"

// aptGet is apt-get with files in /etc that exist left as they are. The lock's timeout is known from apt 1.9.11 on; older ones fail, and
// run waits. apt writes extended_states right before it runs dpkg (apt-pkg/deb/dpkgpm.cc, pkgDPkgPM::Go) and leaves it to the kernel to write it
// out. After a power cut it would be empty, and apt refuses to work with that. dpkg has it written out first.
func aptGet(args ...string) []string {
	return append([]string{
		"apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0",
		"-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold",
		"-o", "Dpkg::Options::=--pre-invoke=sync -f " + aptFiles + " || true",
	}, args...)
}

func (a apt) get(ctx context.Context, args ...string) error {
	_, err := a.run(ctx, changeTime, aptGet(args...)...)
	return said(err, "E: ")
}

// Versions fetches the lists where they do not know the package, as dnf and zypper do by themselves: an image's may be empty.
func (a apt) Versions(ctx context.Context, name string) ([]string, error) {
	versions, err := a.policy(ctx, name)
	if err != nil || len(versions) > 0 || *a.fetched || a.readOnly {
		return versions, err
	}
	if a.tell != nil {
		a.tell("fetch the package lists")
	}
	if err := a.update(ctx); err != nil {
		return nil, err
	}
	return a.policy(ctx, name)
}

func (a apt) update(ctx context.Context) error {
	*a.fetched = true
	if _, err := a.run(ctx, lookTime, aptGet("update")...); err != nil {
		return fmt.Errorf("fetch apt's package lists: %w", said(err, "E: "))
	}
	return host.SyncFileSystems(aptFiles) // apt does not work with a list that a power cut has emptied
}

// ListsFrom goes by directories: a list's own time is that of the server. apt-get update writes each list to partial first, and periodic's
// stamp is Ubuntu's.
func (apt) ListsFrom() time.Time {
	if newest("/var/lib/apt/lists/*_*").IsZero() {
		return time.Time{}
	}
	return newest("/var/lib/apt/lists", "/var/lib/apt/lists/partial", "/var/lib/apt/periodic/update-success-stamp")
}

func (a apt) policy(ctx context.Context, name string) ([]string, error) {
	out, err := a.run(ctx, lookTime, "apt-cache", "policy", name)
	if err != nil {
		return nil, fmt.Errorf("ask apt for versions of %s: %w", name, said(err, "E: "))
	}
	return parsePolicy(out), nil
}

// parsePolicy reads apt-cache policy(8): the candidate, then the others, newest first. Left out are those that only the installed system
// has, and those that a pin forbids.
func parsePolicy(out string) []string {
	var candidate, version string
	var versions []string
	inTable, found, first := false, false, false
	take := func() {
		if version != "" && found {
			versions = append(versions, version)
			first = first || version == candidate
		}
		version, found = "", false
	}
	for line := range strings.Lines(out) {
		text := strings.TrimSpace(line)
		if after, ok := strings.CutPrefix(text, "Candidate:"); ok {
			candidate = strings.TrimSpace(after)
		}
		if text == "Version table:" {
			inTable = true
			continue
		}
		fields := strings.Fields(strings.TrimPrefix(text, "*** "))
		if !inTable || len(fields) < 2 {
			continue
		}
		if _, err := strconv.Atoi(fields[0]); err == nil && strings.HasPrefix(line, "        ") { // a source below its version
			found = found || fields[1] != "/var/lib/dpkg/status"
			continue
		}
		take()
		if priority, err := strconv.Atoi(fields[1]); err == nil && priority >= 0 {
			version = fields[0]
		}
	}
	take()
	if !first {
		return versions
	}
	out2 := []string{candidate}
	for _, v := range versions {
		if v != candidate {
			out2 = append(out2, v)
		}
	}
	return out2
}

func (a apt) Installed(ctx context.Context, name string) (string, bool, error) {
	out, err := a.query(ctx, "-W", "-f=${db:Status-Abbrev}|${Version}\n", name)
	if err != nil {
		return "", false, err
	}
	// The second letter is what there is: i is installed, U and F unpacked, H half-way, c configuration files alone, n nothing (dpkg-query(1)).
	status, version, _ := strings.Cut(strings.TrimSpace(out), "|")
	if len(status) < 2 || status[1] == 'n' {
		return "", false, nil
	}
	return version, status[1] == 'i', nil
}

// query is dpkg-query, which exits with 1 for what it does not know.
func (a apt) query(ctx context.Context, args ...string) (string, error) {
	out, err := a.run(ctx, lookTime, append([]string{"dpkg-query"}, args...)...)
	if err != nil && exitCode(err) != 1 {
		return "", fmt.Errorf("ask dpkg: %w", err)
	}
	return out, nil
}

func exitCode(err error) int {
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

func (a apt) Owner(ctx context.Context, path string) (string, error) {
	for _, path := range usrAliases(path) {
		out, err := a.query(ctx, "-S", path)
		if err != nil {
			return "", err
		}
		if name, _, ok := strings.Cut(out, ": "); ok {
			name, _, _ = strings.Cut(name, ":") // the architecture
			return name, nil
		}
	}
	return "", nil
}

// usrAliases are the names of a file where /bin and /sbin are links into /usr: dpkg knows the one in the package.
func usrAliases(path string) []string {
	paths := []string{path}
	if short, ok := strings.CutPrefix(path, "/usr"); ok && (strings.HasPrefix(short, "/bin/") || strings.HasPrefix(short, "/sbin/")) {
		paths = append(paths, short)
	}
	return paths
}

func (a apt) Simulate(ctx context.Context, name, version string) (Transaction, error) {
	return a.simulate(ctx, "--no-install-recommends", "install", name+"="+version)
}

func (a apt) SimulateRemove(ctx context.Context, names []string) (Transaction, error) {
	return a.simulate(ctx, append([]string{"remove"}, names...)...)
}

func (a apt) simulate(ctx context.Context, args ...string) (Transaction, error) {
	out, err := a.run(ctx, lookTime, aptGet(append([]string{"-s"}, args...)...)...)
	if err != nil {
		return Transaction{}, said(err, "E: ")
	}
	return parseApt(out), nil
}

// parseApt reads the lines of apt-get -s: "Inst NAME [OLD] (NEW SOURCES [ARCH])", "Remv NAME [OLD]", "Purg NAME [OLD]".
func parseApt(out string) Transaction {
	var t Transaction
	downgraded := map[string]bool{}
	inDowngraded := false
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "  ") {
			inDowngraded = strings.HasPrefix(line, "The following packages will be DOWNGRADED")
		} else if inDowngraded {
			for name := range strings.FieldsSeq(line) {
				downgraded[name] = true
			}
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		p := Package{Name: fields[1]}
		for _, field := range fields[2:] {
			if strings.HasPrefix(field, "(") {
				p.New = strings.Trim(field, "()")
				break
			}
			if strings.HasPrefix(field, "[") {
				p.Old = strings.Trim(field, "[]")
			}
		}
		switch {
		case fields[0] == "Remv" || fields[0] == "Purg":
			t.Remove = append(t.Remove, p)
		case fields[0] != "Inst":
		case p.Old == "":
			t.Install = append(t.Install, p)
		case downgraded[p.Name]:
			t.Downgrade = append(t.Downgrade, p)
		default:
			t.Upgrade = append(t.Upgrade, p)
		}
	}
	return t
}

// Keep downloads the old versions: a repository may drop them once there are newer ones.
func (a apt) Keep(ctx context.Context, dir string, packages []Package) ([]Kept, error) {
	if len(packages) == 0 {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep packages: %w", err)
	}
	command := append([]string{"sh", "-c", `cd "$1" && shift && exec apt-get -q download "$@"`, "sh", dir}, targets(packages, "=", oldVersion)...)
	if _, err := a.run(ctx, changeTime, command...); err != nil {
		return nil, fmt.Errorf("keep the packages that are to be replaced: %w", said(err, "E: "))
	}
	var files []Kept
	for _, p := range packages {
		path, err := kept(dir, p)
		if err != nil {
			return nil, err
		}
		sum, err := checksum(path)
		if err == nil {
			err = host.SyncFile(path)
		}
		if err != nil {
			return nil, fmt.Errorf("keep packages: %w", err)
		}
		files = append(files, Kept{Name: filepath.Base(path), SHA256: sum})
	}
	return files, errors.Join(host.SyncDir(dir), host.SyncDir(filepath.Dir(dir)))
}

func (a apt) Restorable(_ context.Context, dir string, packages []Package) error {
	for _, p := range packages {
		if _, err := kept(dir, p); err != nil {
			return err
		}
	}
	return nil
}

// kept finds a file that apt-get download wrote: NAME_VERSION_ARCH.deb, with %3a for the colon of an epoch.
func kept(dir string, p Package) (string, error) {
	name := p.Name + "_" + strings.ReplaceAll(p.Old, ":", "%3a") + "_"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("find the kept package %s: %w", p.Name, err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), name) && strings.HasSuffix(entry.Name(), ".deb") {
			return filepath.Join(dir, entry.Name()), nil
		}
	}
	return "", fmt.Errorf("find the kept package %s %s: it is not in %s", p.Name, p.Old, dir)
}

// Install downloads first, with newer lists if the old ones name what is gone, so that nothing is half done for want of a file.
func (a apt) Install(ctx context.Context, packages []Package) error {
	install := append([]string{"--no-install-recommends", "--no-remove", "install"}, targets(packages, "=", newVersion)...)
	download := append([]string{"--download-only"}, install...)
	if err := a.get(ctx, download...); err != nil {
		if ctx.Err() != nil {
			return err
		}
		if err := a.update(ctx); err != nil {
			return err
		}
		if err := a.get(ctx, download...); err != nil {
			return fmt.Errorf("download packages: %w", err)
		}
	}
	return a.get(ctx, install...)
}

func (a apt) Mend(ctx context.Context) error {
	_, err := a.run(ctx, changeTime, "dpkg", "--force-confdef", "--force-confold", "--configure", "-a")
	if err != nil {
		return fmt.Errorf("have dpkg end what it was killed in: %w", said(err, "dpkg: error"))
	}
	return nil
}

func (a apt) Restore(ctx context.Context, dir string, packages []Package) error {
	var files []string
	for _, p := range packages {
		file, err := kept(dir, p)
		if err != nil {
			return err
		}
		files = append(files, file)
	}
	return a.get(ctx, append([]string{"--no-install-recommends", "--no-remove", "--allow-downgrades", "install"}, files...)...)
}

func (a apt) Remove(ctx context.Context, names []string, purge bool) error {
	verb := "remove"
	if purge {
		verb = "purge"
	}
	return a.get(ctx, append([]string{verb}, names...)...)
}
