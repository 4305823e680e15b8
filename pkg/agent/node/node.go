// Package node is what every check and step of the agent gets: the phase's specification, the programs and systemd of the host, the run's
// journal, and the names of the units that are stopped, held and started. It knows no step and no check.
package node

import (
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/packages"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Proc is where the host's processes are listed.
const Proc = "/proc"

// Host is the node's host as a phase sees it.
type Host struct {
	// Spec is that of the phase.
	Spec protocol.Spec
	// RunDir is the run's directory, where backups and the smoke test's logs go.
	RunDir  string
	Runner  host.Runner
	Systemd host.Systemd
	// Records returns the run's journal: a step's memo tells later ones what was found.
	Records func() []journal.Record
	// ReadOnly: nothing on the host may be written, not even package lists.
	ReadOnly bool
	// Packages is the host's package manager; found if nil.
	Packages packages.Manager
}

// PackageManager is the host's, nil if it has none that is known.
func PackageManager(h *Host, report engine.Report) packages.Manager {
	if h.Packages != nil {
		return h.Packages
	}
	return packages.Find(h.Runner, host.LookPath, report.Info, h.ReadOnly)
}
