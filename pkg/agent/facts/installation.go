package facts

import (
	"fmt"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/packages"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// Installation is how a containerd that fits the kubelet is installed.
type Installation struct {
	From    string `json:"from"`
	Version string `json:"version"`
	// Was is the version of the service that is replaced, empty where there is none.
	Was    string `json:"was,omitempty"`
	Binary string `json:"binary"`

	// Package is what the manager is asked for, Transaction all that it would do.
	Manager     string               `json:"manager,omitempty"`
	Package     string               `json:"package,omitempty"`
	Transaction packages.Transaction `json:"transaction,omitzero"`

	// Dir is where programs from elsewhere go; Archive with its SHA256, or Programs, are where they come from.
	Dir      string   `json:"dir,omitempty"`
	Archive  string   `json:"archive,omitempty"`
	SHA256   string   `json:"sha256,omitempty"`
	Programs []string `json:"programs,omitempty"`
	// Path are the folders in which the service looks for runc, after Dir.
	Path []string `json:"path,omitempty"`
	// Args are those of the service that is replaced; NoFile is LimitNOFILE of one that is made.
	Args   []string `json:"args,omitempty"`
	NoFile string   `json:"noFile,omitempty"`
	// Label is the SELinux label of Docker's program, which the programs get: by it they run in Docker's domain.
	Label string `json:"label,omitempty"`
}

// String says what will be done.
func (n Installation) String() string {
	var how string
	switch n.From {
	case FromPackages:
		how = fmt.Sprintf("by %s: %s", n.Manager, n.Transaction)
	case FromArchive:
		how = fmt.Sprintf("into %s, from %s with SHA-256 %s", n.Dir, n.Archive, n.SHA256)
	case FromDocker:
		how = fmt.Sprintf("into %s, as a copy of %s, which Docker runs", n.Dir, n.Programs[0])
	}
	if n.Was != "" {
		return fmt.Sprintf("containerd %s replaces %s under Docker, %s", n.Version, n.Was, how)
	}
	return fmt.Sprintf("containerd %s is installed %s", n.Version, how)
}

// IsNew reports whether the host had no containerd.service before.
func (n *Installation) IsNew() bool { return n != nil && n.Was == "" }

// Where an installation takes containerd from.
const (
	FromPackages = "packages"
	FromArchive  = "archive"
	// FromDocker copies the programs that a Docker of static binaries runs its own containerd from.
	FromDocker = "docker"
)

// Fits checks that kubelet and containerd share a CRI version: kubelets up to 1.22 speak only v1alpha2, which containerd 2.0 dropped; from
// 1.26 on only v1, which containerd has from 1.6 on. The agent itself speaks v1.
func Fits(k version.Version, c version.Version) error {
	if !c.AtLeast(1, 6) {
		return node.Refuse("install containerd 1.6 or later", "containerd %s is too old: CRI v1 came with 1.6", c)
	}
	if k.Minor <= 22 && c.AtLeast(2, 0) {
		return node.Refuse("install containerd 1.7, or update the kubelet to 1.23 first", "containerd %s and kubelet %s have no CRI version in common", c, k)
	}
	return nil
}
