package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// LeaseDir is host-local's default data directory: one directory a network, in it one file an IP address.
const LeaseDir = "/var/lib/cni/networks"

// Lease is an IP address that host-local has given to a container.
type Lease struct {
	// Path is the file; deleting it releases the address.
	Path        string
	Network     string
	IP          netip.Addr
	ContainerID string
}

// Leases lists host-local's leases below dir (empty means LeaseDir), in lexical order of their paths. A directory that does
// not exist holds none: the network then uses another IPAM.
func Leases(dir string) ([]Lease, error) {
	if dir == "" {
		dir = LeaseDir
	}
	networks, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list host-local networks: %w", err)
	}
	var leases []Lease
	for _, network := range networks {
		if !network.IsDir() {
			continue
		}
		files, err := os.ReadDir(filepath.Join(dir, network.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list host-local leases: %w", err)
		}
		for _, file := range files {
			lease := Lease{Path: filepath.Join(dir, network.Name(), file.Name()), Network: network.Name()}
			if lease.IP, err = netip.ParseAddr(file.Name()); err != nil {
				continue // "lock", "last_reserved_ip.0"
			}
			data, err := os.ReadFile(lease.Path)
			if errors.Is(err, fs.ErrNotExist) {
				continue // released meanwhile
			}
			if err != nil {
				return nil, fmt.Errorf("read host-local lease: %w", err)
			}
			lease.ContainerID = leaseOwner(data)
			leases = append(leases, lease)
		}
	}
	return leases, nil
}

// leaseOwner reads "<container ID>\r\n<interface>"; releases before 0.7 wrote the ID alone (plugins/ipam/host-local/backend/disk).
func leaseOwner(data []byte) string {
	first := string(data)
	if end := strings.IndexAny(first, "\r\n"); end >= 0 {
		first = first[:end]
	}
	return strings.TrimSpace(first)
}

// Release deletes the leases below dir (empty means LeaseDir) that are stale, and returns them, those before an error included. Callers run CNI DEL
// first; this is for what it left, since a leaked address is never given out again.
func Release(dir string, stale func(Lease) bool) (released []Lease, err error) {
	leases, err := Leases(dir)
	if err != nil {
		return nil, err
	}
	for _, lease := range leases {
		if lease.ContainerID == "" || !stale(lease) {
			continue
		}
		if err := unix.Unlink(lease.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return released, fmt.Errorf("release host-local lease %s: %w", lease.Path, err)
		}
		released = append(released, lease)
	}
	return released, nil
}

// sandboxID is the form of the IDs that Docker and containerd's CRI give to sandboxes. Other users of host-local have other forms, such as
// "default-<ID>" (nerdctl).
var sandboxID = regexp.MustCompile("^[0-9a-f]{64}$")

// OfSandbox reports whether the lease has the form of one that the kubelet's runtime took in the network.
func (l Lease) OfSandbox(network string) bool {
	return network != "" && l.Network == network && sandboxID.MatchString(l.ContainerID)
}
