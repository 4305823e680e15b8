package steps

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
)

// insecureIn names the registries that images of the node come from and that are in one of the networks, by address or, as with
// Docker, by one of their name's.
func (i *inspection) insecureIn(ctx context.Context, networks []string) []string {
	if len(networks) == 0 {
		return nil
	}
	var names []string
	for _, image := range i.images {
		names = append(append(names, image.RepoTags...), image.RepoDigests...)
	}
	return hostsWithin(networks, desired.RegistriesOf(names), func(host string) []netip.Addr {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		addresses, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host) // without an answer Docker takes it for secure
		return addresses
	})
}

func hostsWithin(networks, hosts []string, resolve func(host string) []netip.Addr) []string {
	return slices.DeleteFunc(hosts, func(host string) bool {
		name := host
		if h, _, err := net.SplitHostPort(host); err == nil {
			name = h
		}
		name = strings.Trim(name, "[]")
		var addresses []netip.Addr
		if address, err := netip.ParseAddr(name); err == nil {
			addresses = []netip.Addr{address}
		} else {
			addresses = resolve(name)
		}
		return !slices.ContainsFunc(networks, func(network string) bool {
			prefix, err := netip.ParsePrefix(network)
			return err == nil && slices.ContainsFunc(addresses, func(a netip.Addr) bool { return prefix.Contains(a.Unmap()) })
		})
	})
}
