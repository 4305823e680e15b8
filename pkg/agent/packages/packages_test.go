package packages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// Files in testdata are what apt 2.6 (Debian 12), dnf 4.14 and zypper 1.14 printed for packages with these names and dependencies; those
// of yum and dnf 5 are written after their documentation.
func golden(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// answer is how a program ends: with what is in a golden file, and an exit code.
type answer struct {
	golden string
	code   int
}

// fakeRunner answers commands by the words that they contain, and notes them without the environment.
type fakeRunner struct {
	t       *testing.T
	answers map[string]answer
	// scripts run before the answer is given.
	scripts  map[string]func() error
	commands []string
}

func (f *fakeRunner) Run(_ context.Context, name string, args ...string) (string, error) {
	if name != "env" {
		f.t.Errorf("%s is run without the environment that keeps it from asking", name)
	}
	for len(args) > 0 && strings.Contains(args[0], "=") && !strings.HasPrefix(args[0], "-") {
		args = args[1:]
	}
	command := strings.Join(args, " ")
	f.commands = append(f.commands, command)
	for _, words := range slices.Sorted(mapKeys(f.scripts)) {
		if strings.Contains(command, words) {
			if err := f.scripts[words](); err != nil {
				return "", err
			}
		}
	}
	for words, a := range f.answers {
		if !strings.Contains(command, words) {
			continue
		}
		out := ""
		if a.golden != "" {
			out = golden(f.t, a.golden)
		}
		if a.code == 0 {
			return out, nil
		}
		return out, failed(command, out, a.code)
	}
	return "", nil
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// failed is a program's end with an exit code, as os/exec tells it.
func failed(command, output string, code int) error {
	err := exec.Command("sh", "-c", fmt.Sprintf("exit %d", code)).Run()
	return &host.CommandError{Command: command, Output: output, Err: err}
}

func managers(t *testing.T, answers map[string]answer) (apt, dnf, zypper, *fakeRunner) {
	f := &fakeRunner{t: t, answers: answers}
	r := runner{Runner: f, pause: time.Millisecond, fetched: new(bool)}
	return apt{r}, dnf{r, "dnf"}, zypper{r}, f
}

func TestSimulate(t *testing.T) {
	const name = "containerd"
	deb := func(old, new string) Package { return Package{Name: name, Old: old, New: new} }
	io := func(old, new string) Package { return Package{Name: "containerd.io", Old: old, New: new} }
	runc := Package{Name: "runc", New: "1.1.5+ds1-1+deb12u1"}
	selinux := Package{Name: "container-selinux", New: "3:2.229.0-1.el9"}
	for _, test := range []struct {
		manager, golden string
		code            int
		want            Transaction
		wantErr         string
	}{
		{"apt", "apt-install", 0, Transaction{Install: []Package{runc, deb("", "1.6.20~ds1-1+deb12u3")}}, ""},
		{"apt", "apt-upgrade", 0, Transaction{Upgrade: []Package{deb("1.4.13~ds1-1~deb11u4", "1.6.20~ds1-1+deb12u3")}}, ""},
		{"apt", "apt-downgrade", 0, Transaction{Downgrade: []Package{deb("1.6.20~ds1-1+deb12u3", "1.4.13~ds1-1~deb11u4")}}, ""},
		{"apt", "apt-same", 0, Transaction{}, ""},
		{"apt", "apt-conflict", 0, Transaction{Install: []Package{io("", "1.7.27-1")}, Remove: []Package{
			{Name: "docker.io", Old: "20.10.24+dfsg1-1+deb12u1+b6"}, deb("1.4.13~ds1-1~deb11u4", ""), {Name: "runc", Old: "1.1.5+ds1-1+deb12u1"},
		}}, ""},
		{"apt", "apt-no-remove", 100, Transaction{}, "Packages need to be removed but remove is disabled."},
		{"apt", "apt-held", 100, Transaction{}, "Held packages were changed and -y was used without --allow-change-held-packages."},
		{"apt", "apt-downgrade-refused", 100, Transaction{}, "Packages were downgraded and -y was used without --allow-downgrades."},
		{"apt", "apt-none", 100, Transaction{}, "Version '9' for 'containerd' was not found"},
		{"apt", "apt-remove", 0, Transaction{Remove: []Package{{Name: "docker.io", Old: "20.10.24+dfsg1-1+deb12u1+b6"}, deb("1.4.13~ds1-1~deb11u4", "")}}, ""},
		{"apt", "apt-purge", 0, Transaction{Remove: []Package{
			{Name: "docker.io", Old: "20.10.24+dfsg1-1+deb12u1+b6"}, deb("1.4.13~ds1-1~deb11u4", ""), {Name: "runc", Old: "1.1.5+ds1-1+deb12u1"},
		}}, ""},
		{"dnf", "dnf-install", 1, Transaction{Install: []Package{io("", "1.7.27-3.1.el9"), selinux}}, ""},
		{"dnf", "dnf-upgrade", 1, Transaction{Upgrade: []Package{io("1.5.11-3.1.el9", "1.7.27-3.1.el9")}}, ""},
		{"dnf", "dnf-downgrade", 1, Transaction{Downgrade: []Package{io("", "1.5.11-3.1.el9")}}, ""},
		{"dnf", "dnf-same", 0, Transaction{}, ""},
		{"dnf", "dnf-none", 1, Transaction{}, "Unable to find a match: nosuch-1"},
		{"dnf", "dnf-remove", 1, Transaction{Remove: []Package{io("1.5.11-3.1.el9", ""), {Name: "docker-ce", Old: "3:20.10.24-3.el9"}}}, ""},
		{"dnf", "dnf-obsoletes", 1, Transaction{Install: []Package{io("", "1.7.27-3.1.el9"), selinux}, Remove: []Package{{Name: "runc", Old: "4:1.1.12-3.el9"}}}, ""},
		{"dnf", "dnf5-upgrade", 1, Transaction{
			Install: []Package{{Name: "runc", New: "2:1.2.6-1.fc41"}}, Upgrade: []Package{deb("1.6.23-4.fc41", "1.7.27-2.fc41")},
			Remove: []Package{{Name: "crun", Old: "1.21-1.fc41"}},
		}, ""},
		{"dnf", "yum-install", 1, Transaction{
			Install: []Package{io("", "1.6.33-3.1.el7"), {Name: "container-selinux", New: "2:2.119.2-1.911c772.el7_8"}, {Name: "python-libs-with-a-very-long-name", New: "2.7.5-94.el7_9"}},
			Upgrade: []Package{{Name: "policycoreutils", Old: "1.5.11-3.1.el9", New: "2.5-34.el7"}},
		}, ""},
		{"zypper", "zypper-install", 0, Transaction{Install: []Package{deb("", "1.7.27-150000.123.1"), {Name: "runc", New: "4:1.1.12-3.el9"}}}, ""},
		{"zypper", "zypper-upgrade", 0, Transaction{Upgrade: []Package{io("1.5.11-3.1.el9", "1.7.27-3.1.el9")}}, ""},
		{"zypper", "zypper-downgrade", 0, Transaction{Downgrade: []Package{io("1.7.27-3.1.el9", "1.5.11-3.1.el9")}}, ""},
		{"zypper", "zypper-same", 0, Transaction{}, ""},
		{"zypper", "zypper-conflict", 4, Transaction{}, "containerd.io-1.5.11-3.1.el9.x86_64 conflicts with containerd provided by containerd-1.7.27-150000.123.1.x86_64"},
		{"zypper", "zypper-none", 104, Transaction{}, "No provider of 'nosuch=1' found."},
		{"zypper", "zypper-remove", 0, Transaction{Remove: []Package{io("1.5.11-3.1.el9", ""), {Name: "docker-ce", Old: "3:20.10.24-3.el9"}}}, ""},
	} {
		t.Run(test.golden, func(t *testing.T) {
			a, d, z, f := managers(t, map[string]answer{test.manager: {test.golden, test.code}})
			f.answers["rpm -q"] = answer{"rpm-installed", 0}
			if test.manager == "dnf" {
				f.answers = map[string]answer{"--assumeno": {test.golden, test.code}, "rpm -q": {"rpm-installed", 0}}
			}
			got, err := map[string]Manager{"apt": a, "dnf": d, "zypper": z}[test.manager].Simulate(t.Context(), name, "1")
			if test.wantErr != "" {
				if err == nil || err.Error() != test.wantErr {
					t.Errorf("error %v, want %s", err, test.wantErr)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("%+v, %v\nwant %+v", got, err, test.want)
			}
		})
	}
}

// TestSimulateNotUnderstood: what a manager says in unknown words is never taken for "nothing would change".
func TestSimulateNotUnderstood(t *testing.T) {
	_, d, z, _ := managers(t, map[string]answer{"--assumeno": {"rpm-installed", 1}, "zypper": {"zypper-search", 0}})
	if _, err := d.Simulate(t.Context(), "containerd", "1"); err == nil {
		t.Error("dnf: no error")
	}
	if _, err := z.Simulate(t.Context(), "containerd", "1"); err == nil {
		t.Error("zypper: no error")
	}
	if got := parseDnf("Installiert:\n containerd x86_64 1 r 1 k\n"); !got.Empty() {
		t.Errorf("%+v", got)
	}
}

func TestVersions(t *testing.T) {
	for _, test := range []struct {
		name, manager, pkg string
		golden             string
		code               int
		want               []string
	}{
		{"apt", "apt", "containerd", "apt-policy-containerd", 0, []string{"1.6.20~ds1-1+deb12u3", "1.6.20~ds1-1+deb12u2", "1.4.13~ds1-1~deb11u4"}},
		{"apt, another package", "apt", "containerd.io", "apt-policy-containerd.io", 0, []string{"2.2.1-1~debian.12~bookworm", "1.7.27-1", "1.6.33-1"}},
		{"apt, one pinned away, one installed", "apt", "containerd", "apt-policy-pinned", 0, []string{"1.6.20~ds1-1+deb12u2", "1.4.13~ds1-1~deb11u4"}},
		{"apt, installed from nowhere", "apt", "containerd", "apt-policy-local", 0, []string{"1.6.20~ds1-1+deb12u3", "1.6.20~ds1-1+deb12u2"}},
		{"apt, not known", "apt", "containerd", "", 0, nil},
		{"dnf", "dnf", "containerd.io", "dnf-list-missing", 0, []string{"2.2.1-1.el9", "1.7.27-3.1.el9", "1.6.33-3.1.el9", "1.5.11-3.1.el9"}},
		{"dnf, installed", "dnf", "containerd.io", "dnf-list", 0, []string{"2.2.1-1.el9", "1.7.27-3.1.el9", "1.6.33-3.1.el9", "1.5.11-3.1.el9"}},
		{"dnf, not known", "dnf", "containerd", "dnf-list-none", 1, nil},
		{"zypper", "zypper", "containerd", "zypper-search-missing", 0, []string{"1.7.27-150000.123.1"}},
		{"zypper, installed", "zypper", "containerd.io", "zypper-search", 0, []string{"2.2.1-1.el9", "1.7.27-3.1.el9", "1.6.33-3.1.el9", "1.5.11-3.1.el9"}},
		{"zypper, not known", "zypper", "containerd", "zypper-none", 104, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, d, z, _ := managers(t, map[string]answer{"policy " + test.pkg: {test.golden, test.code}, "list --showduplicates": {test.golden, test.code}, "search": {test.golden, test.code}})
			got, err := map[string]Manager{"apt": a, "dnf": d, "zypper": z}[test.manager].Versions(t.Context(), test.pkg)
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// TestAptFetchesLists: an image's package lists may be empty, and are fetched once.
func TestAptFetchesLists(t *testing.T) {
	a, _, _, f := managers(t, nil)
	f.scripts = map[string]func() error{"update": func() error {
		f.answers = map[string]answer{"policy": {"apt-policy-containerd", 0}}
		return nil
	}}
	versions, err := a.Versions(t.Context(), "containerd")
	if err != nil || len(versions) != 3 || len(f.commands) != 3 {
		t.Errorf("%q, %v, after %q", versions, err, f.commands)
	}
}

// TestReadOnly: for a plan no list is fetched, whatever they lack.
func TestReadOnly(t *testing.T) {
	a, d, z, f := managers(t, map[string]answer{"list": {"dnf-list-none", 1}, "search": {"zypper-none", 104}, "install": {"zypper-install", 0}})
	a.readOnly, d.readOnly, z.readOnly = true, true, true
	for _, m := range []Manager{a, d, z} {
		if versions, err := m.Versions(t.Context(), "containerd"); err != nil || len(versions) > 0 {
			t.Errorf("%s: %q, %v", m.Name(), versions, err)
		}
	}
	_, _ = d.Simulate(t.Context(), "containerd", "1")
	_, _ = z.Simulate(t.Context(), "containerd", "1")
	want := []string{"apt-cache policy", "dnf -C -q list", "zypper --xmlout --non-interactive --no-refresh search", "dnf -C --assumeno", "zypper --xmlout --non-interactive --no-refresh install --dry-run"}
	if len(f.commands) != len(want) {
		t.Fatalf("%q", f.commands)
	}
	for i, command := range f.commands {
		if !strings.HasPrefix(command, want[i]) {
			t.Errorf("%q, want %q", command, want[i])
		}
	}
}

func TestNewest(t *testing.T) {
	dir, when := t.TempDir(), time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for n, name := range []string{"b", "a", "c"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(dir, name), when, when.AddDate(0, 0, n)); err != nil {
			t.Fatal(err)
		}
	}
	if got := newest(dir+"/[ab]", dir+"/none"); !got.Equal(when.AddDate(0, 0, 1)) {
		t.Errorf("%s", got)
	}
	if got := newest(dir + "/none"); !got.IsZero() {
		t.Errorf("%s", got)
	}
}

func TestJudge(t *testing.T) {
	p := func(name string) Package { return Package{Name: name, Old: "1", New: "2"} }
	list := func(names ...string) (out []Package) {
		for _, name := range names {
			out = append(out, p(name))
		}
		return out
	}
	for _, test := range []struct {
		name string
		t    Transaction
		want string
	}{
		{"new", Transaction{Install: list("containerd", "runc", "container-selinux")}, ""},
		{"upgrade with runc", Transaction{Upgrade: list("containerd", "runc", "libseccomp2")}, ""},
		{"removes Docker", Transaction{Install: list("containerd"), Remove: list("docker.io", "x")}, "remove docker.io, x"},
		{"replaces runc under podman", Transaction{Install: list("containerd"), Remove: list("runc")}, "remove runc"},
		{"downgrades", Transaction{Install: list("containerd"), Downgrade: list("runc")}, "downgrade runc"},
		{"upgrades Docker", Transaction{Upgrade: list("containerd", "docker-ce")}, "upgrade docker-ce"},
		{"upgrades the C library", Transaction{Install: list("containerd"), Upgrade: list("libc6")}, "upgrade libc6"},
		{"brings another Docker", Transaction{Install: list("containerd", "docker-ce")}, "install docker-ce"},
		{"does nothing", Transaction{}, "would not install"},
		{"something else", Transaction{Install: list("runc")}, "would not install"},
	} {
		err := test.t.Judge("containerd")
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

// TestInstallRetries: lists that name what the repository no longer has are fetched again, and nothing is unpacked before all is there.
func TestInstallRetries(t *testing.T) {
	a, _, _, f := managers(t, nil)
	fresh := false
	f.scripts = map[string]func() error{
		"--download-only": func() error {
			if !fresh {
				return failed("apt-get", "E: Failed to fetch http://x/containerd.deb  404  Not Found", 100)
			}
			return nil
		},
		"update": func() error { fresh = true; return nil },
	}
	if err := a.Install(t.Context(), []Package{{Name: "containerd", New: "1.6"}}); err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, command := range f.commands {
		for _, word := range []string{"update", "--download-only", "--no-remove install containerd=1.6"} {
			if strings.Contains(command, word) {
				order = append(order, word)
				break
			}
		}
	}
	if got := strings.Join(order, ", "); got != "--download-only, update, --download-only, --no-remove install containerd=1.6" {
		t.Error(got)
	}
	for _, command := range f.commands {
		if strings.Contains(command, "install") && (!strings.Contains(command, "--force-confold") || !strings.Contains(command, "--pre-invoke=sync -f /var/lib/apt")) {
			t.Errorf("would ask what to do with a configuration file: %s", command)
		}
	}
}

func TestInstallWaitsForLock(t *testing.T) {
	for name, output := range map[string]string{
		"dpkg": "dpkg: error: dpkg frontend lock was locked by another process with pid 12",
		"apt":  "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (unattended-upgr)",
	} {
		a, _, _, f := managers(t, nil)
		var told []string
		a.tell = func(text string) { told = append(told, text) }
		tries := 0
		f.scripts = map[string]func() error{"remove": func() error {
			if tries++; tries < 3 {
				return failed("apt-get", output, 100)
			}
			return nil
		}}
		if err := a.Remove(t.Context(), []string{"containerd"}, false); err != nil || tries != 3 || len(told) != 1 {
			t.Errorf("%s: %v after %d tries, told %q", name, err, tries, told)
		}
	}
	_, _, z, f := managers(t, map[string]answer{})
	f.scripts = map[string]func() error{"remove": func() error {
		if len(f.commands) < 2 {
			return failed("zypper", "System management is locked by the application with pid 5 (zypper).", 7)
		}
		return nil
	}}
	if err := z.Remove(t.Context(), []string{"containerd"}, false); err != nil {
		t.Errorf("zypper: %v", err)
	}
}

// TestZypperInfo: exit codes from 100 on say that it was done, and more (zypper(8)); that a script failed is none of these.
func TestZypperInfo(t *testing.T) {
	for code, ok := range map[int]bool{0: true, 4: false, 102: true, 103: true, 104: false, 107: false} {
		_, _, z, _ := managers(t, map[string]answer{"install": {"", code}})
		if err := z.Install(t.Context(), []Package{{Name: "containerd", New: "1"}}); (err == nil) != ok {
			t.Errorf("exit code %d: %v", code, err)
		}
	}
}

func TestInstalledAndOwner(t *testing.T) {
	a, d, _, _ := managers(t, map[string]answer{"-W": {"dpkg-query", 0}, "-S /usr/bin": {"", 1}, "-S /bin/x": {"dpkg-owner", 0}, "%{EPOCHNUM}": {"rpm-installed", 0}, "-f /": {"", 1}})
	if v, whole, err := a.Installed(t.Context(), "containerd"); err != nil || !whole || v != "1.6.20~ds1-1+deb12u3" {
		t.Errorf("%q %t %v", v, whole, err)
	}
	if name, err := a.Owner(t.Context(), "/usr/bin/x"); err != nil || name != "containerd" {
		t.Errorf("%q %v", name, err)
	}
	if v, whole, err := d.Installed(t.Context(), "containerd.io"); err != nil || !whole || v != "1.5.11-3.1.el9" {
		t.Errorf("%q %t %v", v, whole, err)
	}
	if name, err := d.Owner(t.Context(), "/usr/bin/x"); err != nil || name != "" {
		t.Errorf("%q %v", name, err)
	}
}

func TestKeep(t *testing.T) {
	dir := t.TempDir()
	a, d, _, f := managers(t, map[string]answer{"list --showduplicates": {"dnf-list", 0}})
	old := []Package{{Name: "containerd", Old: "5:1.4.13-1", New: "2"}}
	if _, err := a.Keep(t.Context(), dir, old); err == nil {
		t.Error("apt downloaded nothing, and that is no error")
	}
	f.scripts = map[string]func() error{"containerd=5:1.4.13-1": func() error {
		return os.WriteFile(filepath.Join(dir, "containerd_5%3a1.4.13-1_amd64.deb"), nil, 0o600)
	}}
	kept, err := a.Keep(t.Context(), dir, old)
	if err != nil || len(kept) != 1 || CheckKept(dir, kept) != nil {
		t.Errorf("%v %v: %v", kept, err, CheckKept(dir, kept))
	}
	if err := os.WriteFile(filepath.Join(dir, kept[0].Name), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CheckKept(dir, kept); err == nil || a.Restorable(t.Context(), dir, old) != nil {
		t.Errorf("a damaged package: %v", err)
	}
	if a.Restorable(t.Context(), t.TempDir(), old) == nil {
		t.Error("a package that is gone is no error")
	}
	if err := a.Restore(t.Context(), dir, old); err != nil || !strings.HasSuffix(f.commands[len(f.commands)-1], "--allow-downgrades install "+dir+"/containerd_5%3a1.4.13-1_amd64.deb") {
		t.Errorf("%v %q", err, f.commands)
	}
	if _, err := d.Keep(t.Context(), dir, []Package{{Name: "containerd.io", Old: "1.5.11-3.1.el9"}}); err != nil {
		t.Error(err)
	}
	if _, err := d.Keep(t.Context(), dir, []Package{{Name: "containerd.io", Old: "1.4.3-3.1.el8"}}); err == nil {
		t.Error("the repositories do not have the old version, and that is no error")
	}
}

func TestUpstream(t *testing.T) {
	for version, want := range map[string]string{
		"1.6.20~ds1-1+deb12u3": "1.6.20~ds1", "2.2.1-1~debian.12~bookworm": "2.2.1", "5:1.7.27-1": "1.7.27", "1.7.27-3.1.el9": "1.7.27", "1.7": "1.7",
	} {
		if got := Upstream(version); got != want {
			t.Errorf("%s: %s", version, got)
		}
	}
}

func TestFind(t *testing.T) {
	for have, want := range map[string]string{
		"apt-get dpkg-query rpm dnf": "apt", "zypper rpm dnf": "zypper", "dnf yum rpm": "dnf", "yum rpm": "yum", "apk": "",
	} {
		m := Find(nil, func(program string) (string, error) {
			if slices.Contains(strings.Fields(have), program) {
				return program, nil
			}
			return "", errors.New("not found")
		}, nil, false)
		if want == "" && m != nil || want != "" && (m == nil || m.Name() != want) {
			t.Errorf("%s: %v", have, m)
		}
	}
}

// FuzzParse: no output of a manager crashes a parser.
func FuzzParse(f *testing.F) {
	entries, err := os.ReadDir("testdata")
	if err != nil {
		f.Fatal(err)
	}
	for _, entry := range entries {
		if data, err := os.ReadFile(filepath.Join("testdata", entry.Name())); err == nil {
			f.Add(string(data))
		}
	}
	f.Fuzz(func(_ *testing.T, text string) {
		parseApt(text)
		parsePolicy(text)
		parseDnf(text)
		parseList(text, "containerd")
		if s, err := parseZypper(text); err == nil {
			_, _ = s.transaction()
		}
	})
}
