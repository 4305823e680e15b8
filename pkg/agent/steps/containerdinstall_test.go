package steps

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/packages"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

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
		m       nodetest.Packages
		applies int
		after   string // what is installed then
		undone  string
	}{
		{"new", fresh, map[string]string{"docker": "20"}, nodetest.Packages{Brings: runc}, 1, "containerd 1.6, docker 20, runc 1.1", "docker 20"},
		{"new, twice", fresh, nil, nodetest.Packages{Brings: runc}, 2, "containerd 1.6, runc 1.1", ""},
		{"new, killed", fresh, nil, nodetest.Packages{Brings: runc, Dies: true}, 2, "containerd 1.6, runc 1.1", ""},
		{"new, killed and undone", fresh, nil, nodetest.Packages{Brings: runc, Dies: true}, 1, "runc 1.1", ""},
		{
			"new, needed since", fresh, nil,
			nodetest.Packages{Brings: runc, Removes: map[string][]packages.Package{"without containerd": {{Name: "nerdctl"}}}},
			1,
			"containerd 1.6, runc 1.1", "containerd 1.6, runc 1.1",
		},
		{"never begun", fresh, map[string]string{"docker": "20"}, nodetest.Packages{}, 0, "docker 20", "docker 20"},
		{"upgrade", upgrade, before, nodetest.Packages{Brings: lib}, 1, "containerd 1.6, docker 20, lib 1", "containerd 1.4, docker 20"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := test.m
			m.Has, m.Half = map[string]string{}, map[string]bool{}
			for name, version := range test.before {
				m.Has[name] = version
			}
			h := &node.Host{Packages: &m, RunDir: t.TempDir()}
			var err error
			for range test.applies {
				err = installPackages(t.Context(), h, test.n, installed{}, node.Silent{})
			}
			if died := test.m.Dies && test.applies == 1; (err != nil) != died {
				t.Errorf("install: %v", err)
			}
			if got := listOf(m.Has); got != test.after {
				t.Errorf("installed are %s, want %s", got, test.after)
			}
			for range 2 {
				if err := uninstallPackages(t.Context(), h, test.n, installed{Purge: true}, node.Silent{}); err != nil {
					t.Fatal(err)
				}
			}
			if got := listOf(m.Has); got != test.undone {
				t.Errorf("after the undo, installed are %s, want %s", got, test.undone)
			}
			if len(test.n.Transaction.Upgrade) > 0 && slices.Index(m.Did, "keep containerd 1.4") > slices.Index(m.Did, "install containerd 1.6") {
				t.Errorf("the old package was not kept before: %v", m.Did)
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
	m := &nodetest.Packages{Has: map[string]string{"containerd": "1.4"}, Half: map[string]bool{}}
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
	if err := installPackages(t.Context(), h, n, memo, node.Silent{}); err == nil || m.Has["containerd"] != "1.4" {
		t.Errorf("%v, installed is %s", err, m.Has["containerd"])
	}
	if err := s.revertible(t.Context(), memo); err != nil {
		t.Errorf("nothing was upgraded: %v", err)
	}
	change("1.4")
	if err := installPackages(t.Context(), h, n, memo, node.Silent{}); err != nil || m.Has["containerd"] != "1.6" {
		t.Fatalf("%v, installed is %s", err, m.Has["containerd"])
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
	if err := uninstallPackages(t.Context(), h, n, memo, node.Silent{}); err == nil || slices.Contains(m.Did, "restore containerd 1.4") {
		t.Errorf("a damaged package was used: %v, %v", err, m.Did)
	}
	change("1.4")
	m.Lost = map[string]bool{"containerd": true}
	if err := s.revertible(t.Context(), memo); err == nil {
		t.Error("the manager does not have the old version, and the way back is not closed")
	}
	m.Lost = nil
	if err := uninstallPackages(t.Context(), h, n, memo, node.Silent{}); err != nil || m.Has["containerd"] != "1.4" {
		t.Errorf("%v, installed is %s", err, m.Has["containerd"])
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
	for name, m := range map[string]*nodetest.Packages{
		"removes": {Removes: map[string][]packages.Package{"containerd": {{Name: "docker.io"}}}},
		"brings":  {Brings: map[string][]packages.Package{"containerd": {{Name: "policy", New: "1"}}}},
	} {
		m.Has, m.Half = map[string]string{}, map[string]bool{}
		h := &node.Host{Packages: m, RunDir: t.TempDir()}
		if err := installPackages(t.Context(), h, n, installed{}, node.Silent{}); err == nil || len(m.Has) > 0 {
			t.Errorf("%s: %v, installed %v", name, err, m.Has)
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
