package nodetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/packages"
)

// Packages is a package manager over maps of name to version.
type Packages struct {
	Repository map[string][]string // newest first
	Has        map[string]string
	// Half are packages that a killed manager left half-way.
	Half   map[string]bool
	Owners map[string]string
	// needs are packages that come, or go, along with another one.
	Brings, Removes map[string][]packages.Package
	// Dies ends Install after the first package, once.
	Dies bool
	// Lost are the packages whose old versions Restore does not have.
	Lost  map[string]bool
	Did   []string
	Lists time.Time
}

func (m *Packages) Name() string { return "fake" }

func (m *Packages) Versions(_ context.Context, name string) ([]string, error) {
	return m.Repository[name], nil
}

func (m *Packages) ListsFrom() time.Time { return m.Lists }

func (m *Packages) Installed(_ context.Context, name string) (string, bool, error) {
	return m.Has[name], m.Has[name] != "" && !m.Half[name], nil
}

func (m *Packages) Owner(_ context.Context, path string) (string, error) {
	return m.Owners[path], nil
}

func (m *Packages) Simulate(_ context.Context, name, version string) (packages.Transaction, error) {
	t := packages.Transaction{Remove: m.Removes[name]}
	for _, p := range append(slices.Clone(m.Brings[name]), packages.Package{Name: name, New: version}) {
		p.Old = m.Has[p.Name]
		switch {
		case m.Half[p.Name], p.Old == "":
			p.Old = ""
			t.Install = append(t.Install, p)
		case p.Old != p.New:
			t.Upgrade = append(t.Upgrade, p)
		}
	}
	return t, nil
}

func (m *Packages) SimulateRemove(_ context.Context, names []string) (packages.Transaction, error) {
	var t packages.Transaction
	for _, name := range names {
		if m.Half[name] {
			return t, errors.New(name + " is in a very bad state")
		}
		t.Remove = append(append(t.Remove, m.Removes["without "+name]...), packages.Package{Name: name})
	}
	return t, nil
}

func (m *Packages) Mend(context.Context) error { m.Did = append(m.Did, "mend"); return nil }

func (m *Packages) Keep(_ context.Context, dir string, list []packages.Package) (kept []packages.Kept, err error) {
	for _, p := range list {
		m.Did = append(m.Did, "keep "+p.Name+" "+p.Old)
		err = errors.Join(err, os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, p.Name), []byte(p.Old), 0o600))
		sum := sha256.Sum256([]byte(p.Old))
		kept = append(kept, packages.Kept{Name: p.Name, SHA256: hex.EncodeToString(sum[:])})
	}
	return kept, err
}

func (m *Packages) Restorable(_ context.Context, _ string, list []packages.Package) error {
	for _, p := range list {
		if m.Lost[p.Name] {
			return errors.New("there is no " + p.Name + " " + p.Old + " any more")
		}
	}
	return nil
}

func (m *Packages) Install(_ context.Context, list []packages.Package) error {
	for _, p := range list {
		if m.Dies {
			m.Dies, m.Half[p.Name], m.Has[p.Name] = false, true, p.New
			return errors.New("killed")
		}
		m.Has[p.Name] = p.New
		delete(m.Half, p.Name)
		m.Did = append(m.Did, "install "+p.Name+" "+p.New)
	}
	return nil
}

func (m *Packages) Restore(_ context.Context, _ string, list []packages.Package) error {
	for _, p := range list {
		m.Has[p.Name] = p.Old
		m.Did = append(m.Did, "restore "+p.Name+" "+p.Old)
	}
	return nil
}

func (m *Packages) Remove(_ context.Context, names []string, purge bool) error {
	for _, name := range names {
		delete(m.Has, name)
		delete(m.Half, name)
		m.Did = append(m.Did, fmt.Sprintf("remove %s %t", name, purge))
	}
	return nil
}
