package steps

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/bundle"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/packages"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// fakeManager is a package manager over maps of name to version.
type fakeManager struct {
	repository map[string][]string // newest first
	installed  map[string]string
	// half are packages that a killed manager left half-way.
	half   map[string]bool
	owners map[string]string
	// needs are packages that come, or go, along with another one.
	brings, removes map[string][]packages.Package
	// dies ends Install after the first package, once.
	dies bool
	// lost are the packages whose old versions Restore does not have.
	lost  map[string]bool
	did   []string
	lists time.Time
}

func (m *fakeManager) Name() string { return "fake" }

func (m *fakeManager) Versions(_ context.Context, name string) ([]string, error) {
	return m.repository[name], nil
}

func (m *fakeManager) ListsFrom() time.Time { return m.lists }

func (m *fakeManager) Installed(_ context.Context, name string) (string, bool, error) {
	return m.installed[name], m.installed[name] != "" && !m.half[name], nil
}

func (m *fakeManager) Owner(_ context.Context, path string) (string, error) {
	return m.owners[path], nil
}

func (m *fakeManager) Simulate(_ context.Context, name, version string) (packages.Transaction, error) {
	t := packages.Transaction{Remove: m.removes[name]}
	for _, p := range append(slices.Clone(m.brings[name]), packages.Package{Name: name, New: version}) {
		p.Old = m.installed[p.Name]
		switch {
		case m.half[p.Name], p.Old == "":
			p.Old = ""
			t.Install = append(t.Install, p)
		case p.Old != p.New:
			t.Upgrade = append(t.Upgrade, p)
		}
	}
	return t, nil
}

func (m *fakeManager) SimulateRemove(_ context.Context, names []string) (packages.Transaction, error) {
	var t packages.Transaction
	for _, name := range names {
		if m.half[name] {
			return t, errors.New(name + " is in a very bad state")
		}
		t.Remove = append(append(t.Remove, m.removes["without "+name]...), packages.Package{Name: name})
	}
	return t, nil
}

func (m *fakeManager) Mend(context.Context) error { m.did = append(m.did, "mend"); return nil }

func (m *fakeManager) Keep(_ context.Context, dir string, list []packages.Package) (kept []packages.Kept, err error) {
	for _, p := range list {
		m.did = append(m.did, "keep "+p.Name+" "+p.Old)
		err = errors.Join(err, os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, p.Name), []byte(p.Old), 0o600))
		sum := sha256.Sum256([]byte(p.Old))
		kept = append(kept, packages.Kept{Name: p.Name, SHA256: hex.EncodeToString(sum[:])})
	}
	return kept, err
}

func (m *fakeManager) Restorable(_ context.Context, _ string, list []packages.Package) error {
	for _, p := range list {
		if m.lost[p.Name] {
			return errors.New("there is no " + p.Name + " " + p.Old + " any more")
		}
	}
	return nil
}

func (m *fakeManager) Install(_ context.Context, list []packages.Package) error {
	for _, p := range list {
		if m.dies {
			m.dies, m.half[p.Name], m.installed[p.Name] = false, true, p.New
			return errors.New("killed")
		}
		m.installed[p.Name] = p.New
		delete(m.half, p.Name)
		m.did = append(m.did, "install "+p.Name+" "+p.New)
	}
	return nil
}

func (m *fakeManager) Restore(_ context.Context, _ string, list []packages.Package) error {
	for _, p := range list {
		m.installed[p.Name] = p.Old
		m.did = append(m.did, "restore "+p.Name+" "+p.Old)
	}
	return nil
}

func (m *fakeManager) Remove(_ context.Context, names []string, purge bool) error {
	for _, name := range names {
		delete(m.installed, name)
		delete(m.half, name)
		m.did = append(m.did, fmt.Sprintf("remove %s %t", name, purge))
	}
	return nil
}

func mustVersion(t *testing.T, text string) *containerd.BinaryVersion {
	t.Helper()
	if text == "" {
		return nil
	}
	v, err := containerd.ParseVersion("containerd - " + text)
	if err != nil {
		t.Fatal(err)
	}
	return &v
}

func TestPlanPackages(t *testing.T) {
	const bin = "/usr/bin/containerd"
	docker := packages.Package{Name: "docker.io", Old: "20"}
	for _, test := range []struct {
		name, kubelet, was string
		m                  fakeManager
		want, wantReason   string // package and version, or why not
	}{
		{"the distribution's", "v1.30.0", "", fakeManager{repository: map[string][]string{"containerd": {"1.6.20~ds1-1"}}}, "containerd 1.6.20~ds1", ""},
		{"Docker's repository first", "v1.30.0", "", fakeManager{repository: map[string][]string{"containerd": {"1.6.20-1"}, "containerd.io": {"2.2.1-1"}}}, "containerd.io 2.2.1", ""},
		{"too new for an old kubelet", "v1.22.17", "", fakeManager{repository: map[string][]string{"containerd.io": {"2.2.1-1", "1.7.27-1", "1.6.33-1"}}}, "containerd.io 1.7.27", ""},
		{"only what is too old", "v1.23.17", "", fakeManager{repository: map[string][]string{"containerd": {"1.4.13-1"}}}, "", "repositories have no containerd that would do"},
		{"nothing", "v1.23.17", "", fakeManager{}, "", "repositories have no containerd.io that would do"},
		{"would remove Docker", "v1.30.0", "", fakeManager{
			repository: map[string][]string{"containerd.io": {"1.7.27-1"}}, removes: map[string][]packages.Package{"containerd.io": {docker}},
		}, "", "would remove docker.io"},
		{"would remove Docker, and the other one does not", "v1.30.0", "", fakeManager{
			repository: map[string][]string{"containerd.io": {"1.7.27-1"}, "containerd": {"1.6.20-1"}}, removes: map[string][]packages.Package{"containerd.io": {docker}},
		}, "containerd 1.6.20", ""},
		{"upgrade", "v1.30.0", "1.4.13", fakeManager{
			owners: map[string]string{bin: "containerd"}, installed: map[string]string{"containerd": "1.4.13-1"}, repository: map[string][]string{"containerd": {"1.6.20-1", "1.4.13-1"}},
		}, "containerd 1.6.20", ""},
		{"upgrade within the major version", "v1.30.0", "1.4.13", fakeManager{
			owners: map[string]string{bin: "containerd.io"}, installed: map[string]string{"containerd.io": "1.4.13-1"}, repository: map[string][]string{"containerd.io": {"2.2.1-1", "1.7.27-1", "1.4.13-1"}},
		}, "containerd.io 1.7.27", ""},
		{"no way back", "v1.30.0", "1.4.13", fakeManager{
			owners: map[string]string{bin: "containerd"}, installed: map[string]string{"containerd": "1.4.13-1"}, repository: map[string][]string{"containerd": {"1.6.20-1"}},
		}, "", "no way back: the repositories do not have containerd 1.4.13-1"},
		{"no way back for runc", "v1.30.0", "1.4.13", fakeManager{
			owners: map[string]string{bin: "containerd"}, installed: map[string]string{"containerd": "1.4.13-1", "runc": "1.0"},
			repository: map[string][]string{"containerd": {"1.6.20-1", "1.4.13-1"}, "runc": {"1.1"}},
			brings:     map[string][]packages.Package{"containerd": {{Name: "runc", New: "1.1"}}},
		}, "", "do not have runc 1.0"},
		{"would upgrade Docker", "v1.30.0", "1.4.13", fakeManager{
			owners: map[string]string{bin: "containerd"}, installed: map[string]string{"containerd": "1.4.13-1", "docker-ce": "20"},
			repository: map[string][]string{"containerd": {"1.6.20-1", "1.4.13-1"}},
			brings:     map[string][]packages.Package{"containerd": {{Name: "docker-ce", New: "24"}}},
		}, "", "would upgrade docker-ce"},
		{"no package's", "v1.30.0", "1.4.13", fakeManager{repository: map[string][]string{"containerd": {"1.6.20-1"}}}, "", "belongs to no package"},
	} {
		t.Run(test.name, func(t *testing.T) {
			version, err := kubelet.ParseVersion(test.kubelet)
			if err != nil {
				t.Fatal(err)
			}
			i := &inspection{h: &node.Host{Packages: &test.m}, report: node.Silent{}, setup: kubelet.Setup{Version: version}}
			if test.was != "" {
				i.ContainerdBinary = bin
			}
			n, reasons, err := i.planPackages(t.Context(), mustVersion(t, test.was))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if n != nil {
				got = n.Package + " " + n.Version
			}
			if got != test.want || !strings.Contains(strings.Join(reasons, "; "), test.wantReason) {
				t.Errorf("%q, %q", got, reasons)
			}
		})
	}
}

// TestPlanInstallByOldLists: a plan, which fetches no lists, says what those that are there tell, and does not take for a refusal what
// newer ones may cure.
func TestPlanInstallByOldLists(t *testing.T) {
	version, err := kubelet.ParseVersion("v1.30.0")
	if err != nil {
		t.Fatal(err)
	}
	was := mustVersion(t, "1.4.13") // with it, nobody is looked for at containerd's socket
	owners := map[string]string{"/usr/bin/containerd": "containerd"}
	lists := time.Now().Add(-50 * time.Hour)
	for _, test := range []struct {
		name     string
		m        fakeManager
		readOnly bool
		check    string
		want     []string
	}{
		{"not in the lists", fakeManager{owners: owners, lists: lists}, true, protocol.CheckMayInstall, []string{"is not known", "fake's package lists of " + lists.UTC().Format(time.DateOnly) + " (2 days old)"}},
		{"no lists", fakeManager{owners: owners}, true, protocol.CheckMayInstall, []string{"is not known", "never fetched"}},
		{"a switch, which has fetched them", fakeManager{owners: owners, lists: lists}, false, protocol.CheckContainerd, []string{"nothing was found that could be installed safely"}},
		{"what the lists have would not do", fakeManager{owners: owners, repository: map[string][]string{"containerd": {"1.5.0-1"}}}, true, protocol.CheckContainerd, []string{"nothing was found"}},
	} {
		i := &inspection{h: &node.Host{Packages: &test.m, ReadOnly: test.readOnly}, report: node.Silent{}, setup: kubelet.Setup{Version: version}}
		i.ContainerdBinary = "/usr/bin/containerd"
		_ = i.take(t.Context(), look{check: protocol.CheckContainerd, at: func(i *inspection, ctx context.Context) error {
			_, err := i.planInstall(ctx, was)
			return err
		}})
		if len(i.findings) != 1 || i.findings[0].Check != test.check || i.findings[0].Hint == "" || !slices.Contains(i.failed, protocol.CheckContainerd) {
			t.Errorf("%s: %+v, failed %v", test.name, i.findings, i.failed)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(i.findings[0].Message, want) {
				t.Errorf("%s: %q does not say %q", test.name, i.findings[0].Message, want)
			}
		}
	}
}

// TestStrayProgram: a package never takes the place of a program that no package has, such as one of Docker's static binaries.
func TestStrayProgram(t *testing.T) {
	dir := t.TempDir()
	owned, stray := filepath.Join(dir, "containerd"), filepath.Join(dir, "runc")
	for _, path := range []string{owned, stray} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := &fakeManager{owners: map[string]string{owned: "containerd"}}
	for want, paths := range map[string][]string{"": {filepath.Join(dir, "ctr"), owned}, stray: {owned, stray}} {
		if got, err := strayProgram(t.Context(), m, paths); err != nil || got != want {
			t.Errorf("%v: %q %v, want %q", paths, got, err, want)
		}
	}
}

func TestNofile(t *testing.T) {
	for _, test := range [][3]string{{"1024", "524288", "1024:524288"}, {"infinity", "infinity", "infinity"}, {"", "18446744073709551615", "infinity"}, {"", "", "infinity"}, {"", "4096", "4096"}} {
		if got := nofile(test[0], test[1]); got != test[2] {
			t.Errorf("%v: %s", test, got)
		}
	}
}

// TestPackagesInstalledAndRemoved: what was killed half-way goes on, and back, and what someone has come to need stays.
func TestPackagesInstalledAndRemoved(t *testing.T) {
	fresh := facts.Installation{From: facts.FromPackages, Package: "containerd", Transaction: packages.Transaction{
		Install: []packages.Package{{Name: "runc", New: "1.1"}, {Name: "containerd", New: "1.6"}},
	}}
	upgrade := facts.Installation{From: facts.FromPackages, Was: "1.4", Package: "containerd", Transaction: packages.Transaction{
		Install: []packages.Package{{Name: "lib", New: "1"}}, Upgrade: []packages.Package{{Name: "containerd", Old: "1.4", New: "1.6"}},
	}}
	before := map[string]string{"containerd": "1.4", "docker": "20"}
	lib := map[string][]packages.Package{"containerd": {{Name: "lib", New: "1"}}}
	runc := map[string][]packages.Package{"containerd": {{Name: "runc", New: "1.1"}}}
	for _, test := range []struct {
		name    string
		n       facts.Installation
		before  map[string]string
		m       fakeManager
		applies int
		after   string // what is installed then
		undone  string
	}{
		{"new", fresh, map[string]string{"docker": "20"}, fakeManager{brings: runc}, 1, "containerd 1.6, docker 20, runc 1.1", "docker 20"},
		{"new, twice", fresh, nil, fakeManager{brings: runc}, 2, "containerd 1.6, runc 1.1", ""},
		{"new, killed", fresh, nil, fakeManager{brings: runc, dies: true}, 2, "containerd 1.6, runc 1.1", ""},
		{"new, killed and undone", fresh, nil, fakeManager{brings: runc, dies: true}, 1, "runc 1.1", ""},
		{
			"new, needed since", fresh, nil,
			fakeManager{brings: runc, removes: map[string][]packages.Package{"without containerd": {{Name: "nerdctl"}}}},
			1,
			"containerd 1.6, runc 1.1", "containerd 1.6, runc 1.1",
		},
		{"never begun", fresh, map[string]string{"docker": "20"}, fakeManager{}, 0, "docker 20", "docker 20"},
		{"upgrade", upgrade, before, fakeManager{brings: lib}, 1, "containerd 1.6, docker 20, lib 1", "containerd 1.4, docker 20"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := test.m
			m.installed, m.half = map[string]string{}, map[string]bool{}
			for name, version := range test.before {
				m.installed[name] = version
			}
			h := &node.Host{Packages: &m, RunDir: t.TempDir()}
			var err error
			for range test.applies {
				err = installPackages(t.Context(), h, test.n, installed{}, node.Silent{})
			}
			if died := test.m.dies && test.applies == 1; (err != nil) != died {
				t.Errorf("install: %v", err)
			}
			if got := listOf(m.installed); got != test.after {
				t.Errorf("installed are %s, want %s", got, test.after)
			}
			for range 2 {
				if err := uninstallPackages(t.Context(), h, test.n, installed{Purge: true}, node.Silent{}); err != nil {
					t.Fatal(err)
				}
			}
			if got := listOf(m.installed); got != test.undone {
				t.Errorf("after the undo, installed are %s, want %s", got, test.undone)
			}
			if len(test.n.Transaction.Upgrade) > 0 && slices.Index(m.did, "keep containerd 1.4") > slices.Index(m.did, "install containerd 1.6") {
				t.Errorf("the old package was not kept before: %v", m.did)
			}
		})
	}
}

// TestUpgradeThatCannotBeUndone: whether the old packages can be brought back is known before anything is undone, and before anything is
// installed.
func TestUpgradeThatCannotBeUndone(t *testing.T) {
	n := facts.Installation{From: facts.FromPackages, Was: "1.4", Package: "containerd", Transaction: packages.Transaction{
		Upgrade: []packages.Package{{Name: "containerd", Old: "1.4", New: "1.6"}},
	}}
	m := &fakeManager{installed: map[string]string{"containerd": "1.4"}, half: map[string]bool{}}
	h := nodetest.HostWith(t, facts.Found{Install: &n}, protocol.Spec{})
	h.Packages, h.RunDir = m, t.TempDir()
	s := containerdInstall(h).(step[installed])
	memo, err := recordInstall(t.Context(), h, n, node.Silent{})
	if err != nil || len(memo.Kept) != 1 {
		t.Fatalf("%v %v", memo, err)
	}
	file := filepath.Join(keptPackages(h), "containerd")
	change := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change("damaged")
	if err := installPackages(t.Context(), h, n, memo, node.Silent{}); err == nil || m.installed["containerd"] != "1.4" {
		t.Errorf("%v, installed is %s", err, m.installed["containerd"])
	}
	if err := s.revertible(t.Context(), memo); err != nil {
		t.Errorf("nothing was upgraded: %v", err)
	}
	change("1.4")
	if err := installPackages(t.Context(), h, n, memo, node.Silent{}); err != nil || m.installed["containerd"] != "1.6" {
		t.Fatalf("%v, installed is %s", err, m.installed["containerd"])
	}
	if err := s.revertible(t.Context(), memo); err != nil {
		t.Error(err)
	}
	change("damaged")
	hint := ""
	if hinted := (interface {
		error
		Hint() string
	})(nil); errors.As(s.revertible(t.Context(), memo), &hinted) {
		hint = hinted.Hint()
	}
	if !strings.Contains(hint, file) || !strings.Contains(hint, memo.Kept[0].SHA256) {
		t.Errorf("hint %q", hint)
	}
	if err := uninstallPackages(t.Context(), h, n, memo, node.Silent{}); err == nil || slices.Contains(m.did, "restore containerd 1.4") {
		t.Errorf("a damaged package was used: %v, %v", err, m.did)
	}
	change("1.4")
	m.lost = map[string]bool{"containerd": true}
	if err := s.revertible(t.Context(), memo); err == nil {
		t.Error("the manager does not have the old version, and the way back is not closed")
	}
	m.lost = nil
	if err := uninstallPackages(t.Context(), h, n, memo, node.Silent{}); err != nil || m.installed["containerd"] != "1.4" {
		t.Errorf("%v, installed is %s", err, m.installed["containerd"])
	}
}

func listOf(installed map[string]string) string {
	var out []string
	for name, version := range installed {
		out = append(out, name+" "+version)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestInstallRefusesWhatWasNotPlanned: between inspection and installation, the repositories may have changed.
func TestInstallRefusesWhatWasNotPlanned(t *testing.T) {
	n := facts.Installation{From: facts.FromPackages, Package: "containerd", Transaction: packages.Transaction{Install: []packages.Package{{Name: "containerd", New: "1.6"}}}}
	for name, m := range map[string]*fakeManager{
		"removes": {removes: map[string][]packages.Package{"containerd": {{Name: "docker.io"}}}},
		"brings":  {brings: map[string][]packages.Package{"containerd": {{Name: "policy", New: "1"}}}},
	} {
		m.installed, m.half = map[string]string{}, map[string]bool{}
		h := &node.Host{Packages: m, RunDir: t.TempDir()}
		if err := installPackages(t.Context(), h, n, installed{}, node.Silent{}); err == nil || len(m.installed) > 0 {
			t.Errorf("%s: %v, installed %v", name, err, m.installed)
		}
	}
}

// TestContainerdInstallNothing: on a host with a containerd that fits, the step leaves everything alone.
func TestContainerdInstallNothing(t *testing.T) {
	h := nodetest.HostWith(t, facts.Found{Facts: protocol.Facts{ContainerdVersion: "1.6.20"}}, protocol.Spec{})
	h.Systemd.Run, h.Packages = failing{t}, nil
	s := containerdInstall(h)
	memo, err := s.Record(t.Context(), node.Silent{})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(memo)
	if err != nil {
		t.Fatal(err)
	}
	for _, do := range []func(context.Context, json.RawMessage, engine.Report) error{s.Apply, s.Revert} {
		if err := do(t.Context(), raw, node.Silent{}); err != nil {
			t.Error(err)
		}
	}
}

// failing is a Runner that nobody is to use.
type failing struct{ t *testing.T }

func (f failing) Run(_ context.Context, name string, args ...string) (string, error) {
	f.t.Errorf("%s %v was run", name, args)
	return "", errors.New("no")
}

// TestRefuseOther: two containerds would share a root and a socket.
func TestRefuseOther(t *testing.T) {
	address := filepath.Join(t.TempDir(), "c.sock")
	if err := refuseOther(t.Context(), "/proc", address); err != nil {
		t.Errorf("nobody listens: %v", err)
	}
	listener, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	var hint interface{ Hint() string }
	if err := refuseOther(t.Context(), "/proc", address); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d (", os.Getpid())) || !errors.As(err, &hint) {
		t.Errorf("%v", err)
	}
}

func TestPrivateContainerd(t *testing.T) {
	for _, test := range []struct {
		name string
		// processes are PID, program, parent.
		processes [][3]string
		daemon    int
		want      bool
	}{
		{"packages", [][3]string{{"10", "containerd", "1"}, {"20", "dockerd", "1"}}, 20, false},
		{"static binaries", [][3]string{{"20", "dockerd", "1"}, {"21", "containerd", "20"}}, 20, true},
		{"another Docker's", [][3]string{{"10", "containerd", "1"}, {"20", "dockerd", "1"}, {"30", "dockerd", "1"}, {"31", "containerd", "30"}}, 20, true},
		{"Docker 18.06", [][3]string{{"20", "dockerd", "1"}, {"21", "docker-containerd", "20"}}, 20, true},
		{"CentOS 7", [][3]string{{"20", "dockerd-current", "1"}, {"21", "docker-containerd-current", "20"}}, 20, true},
		{"another name", [][3]string{{"20", "moby-engine", "1"}, {"21", "containerd", "20"}}, 20, true},
		{"a shim", [][3]string{{"20", "dockerd", "1"}, {"21", "containerd-shim", "20"}}, 20, false},
		{"no Docker", [][3]string{{"10", "containerd", "1"}}, 0, false},
	} {
		proc := t.TempDir()
		for _, p := range test.processes {
			dir := filepath.Join(proc, p[0])
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for name, content := range map[string]string{"cmdline": p[1] + "\x00", "cgroup": "0::/\n", "stat": fmt.Sprintf("%s (%s) S %s 1 1", p[0], p[1], p[2])} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink("/usr/bin/"+p[1], filepath.Join(dir, "exe")); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := privateContainerd(proc, test.daemon); err != nil || got != test.want {
			t.Errorf("%s: %t %v", test.name, got, err)
		}
	}
}

func TestPlanArchive(t *testing.T) {
	script := func(version string) string {
		return "#!/bin/sh\necho containerd example.com/containerd v" + version + " abc\n"
	}
	for _, test := range []struct {
		name, kubelet, was string
		programs           map[string]string
		want, wantErr      string
	}{
		{"upstream with runc", "v1.30.0", "", map[string]string{"containerd": script("2.4.2"), bundle.Shim: "x", "runc": "x"}, "2.4.2", ""},
		{"for an old kubelet", "v1.22.17", "", map[string]string{"containerd": script("1.7.30"), bundle.Shim: "x", "runc": "x"}, "1.7.30", ""},
		{"too new for an old kubelet", "v1.22.17", "", map[string]string{"containerd": script("2.4.2"), bundle.Shim: "x", "runc": "x"}, "", "no CRI version in common"},
		{"too old", "v1.30.0", "", map[string]string{"containerd": script("1.5.18"), bundle.Shim: "x", "runc": "x"}, "", "too old"},
		{"replaces", "v1.30.0", "1.4.13", map[string]string{"containerd": script("1.7.30"), bundle.Shim: "x", "runc": "x"}, "1.7.30", ""},
		{"replaces across major versions", "v1.30.0", "1.4.13", map[string]string{"containerd": script("2.4.2"), bundle.Shim: "x", "runc": "x"}, "", "major version has to stay 1"},
		{"for another machine", "v1.30.0", "", map[string]string{"containerd": "\x7fELF junk", bundle.Shim: "x", "runc": "x"}, "", "exec format error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			version, err := kubelet.ParseVersion(test.kubelet)
			if err != nil {
				t.Fatal(err)
			}
			var data bytes.Buffer
			w := tar.NewWriter(&data)
			for name, content := range test.programs {
				if err := w.WriteHeader(&tar.Header{Name: "bin/" + name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write([]byte(content)); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "containerd.tar")
			if err := os.WriteFile(path, data.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			i := &inspection{h: &node.Host{Runner: host.Exec{}}, report: node.Silent{}, setup: kubelet.Setup{Version: version}}
			n, err := i.planArchive(t.Context(), path, mustVersion(t, test.was))
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) {
					t.Errorf("%v, want %q", err, test.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n.Version != test.want || n.Binary != installRoot+"/containerd-"+test.want+"/bin/containerd" {
				t.Errorf("%+v", n)
			}
		})
	}
}
