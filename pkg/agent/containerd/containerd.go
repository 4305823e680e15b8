// Package containerd writes containerd's configuration, proves it on a throw-away daemon, and dials the live one. It does
// not touch host files or services: the agent's steps do that with what it returns.
package containerd

import (
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/client"
)

const (
	// Namespace is the only containerd namespace that CRI looks at.
	Namespace = "k8s.io"
	// DefaultAddress is the socket of a containerd whose config does not say otherwise.
	DefaultAddress = "/run/containerd/containerd.sock"
	// DefaultConfigPath is the file that containerd reads without -c.
	DefaultConfigPath = "/etc/containerd/config.toml"
	// DefaultRoot is where containerd keeps its content and snapshots.
	DefaultRoot = "/var/lib/containerd"
	// RegistryConfigPath is the directory of hosts.toml files. It has to be a single directory: containerd 2.x does not
	// split the value at colons.
	RegistryConfigPath = "/etc/containerd/certs.d"
)

// Dial returns containerd's client for the socket at address (a path; empty means DefaultAddress), in namespace k8s.io. It
// connects with the first call, and again at most 3 s after a restart of the daemon. It works with containerd 1.6 to 2.4.
func Dial(address string) (*client.Client, error) {
	if address == "" {
		address = DefaultAddress
	}
	// The timeout is also the longest pause between attempts to connect.
	c, err := client.New(address, client.WithDefaultNamespace(Namespace), client.WithTimeout(3*time.Second))
	if err != nil {
		return nil, fmt.Errorf("containerd client for %s: %w", address, err)
	}
	return c, nil
}

// With calls do with a client of the containerd at address, and closes it.
func With(address string, do func(*client.Client) error) error {
	c, err := Dial(address)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return do(c)
}
