package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Addresses are fixed, so that only one lab runs at a time.
const (
	bridge       = "kr-lab"
	hostIP       = "10.88.0.1" // the machine's address on the bridge: control plane, registries
	hostPrefix   = "10.88.0.1/24"
	podNetwork   = "10.244.0.0/16"
	serviceRange = "10.96.0.0/16"
	kubernetesIP = "10.96.0.1"
	dnsIP        = "10.96.0.10"
	apiServerURL = "https://" + hostIP + ":6443"
)

// networkUp makes the bridge that nodes are plugged into.
func networkUp(ctx context.Context, s *state) error {
	for _, args := range [][]string{
		{"link", "add", bridge, "type", "bridge"},
		{"addr", "add", hostPrefix, "dev", bridge},
		{"link", "set", bridge, "up"},
		noWayOut("add"),
	} {
		if _, err := output(ctx, "ip", args...); err != nil {
			return fmt.Errorf("make bridge: %w", err)
		}
	}
	// Where bridged packets pass the machine's firewall, one that drops forwarded packets (Docker's does) would part the nodes.
	if rules, err := output(ctx, "iptables", "-S", "FORWARD"); err == nil && strings.TrimSpace(rules) != "-P FORWARD ACCEPT" {
		s.Firewall = true
		if err := s.save(); err != nil {
			return err
		}
		if _, err := output(ctx, "iptables", append([]string{"-I"}, forwardRule...)...); err != nil {
			return fmt.Errorf("let nodes through the firewall: %w", err)
		}
	}
	return nil
}

// noWayOut keeps what nodes send on the bridge, also where the machine forwards packets for others.
func noWayOut(verb string) []string {
	return []string{"rule", verb, "pref", "1088", "iif", bridge, "unreachable"}
}

var forwardRule = []string{"FORWARD", "-i", bridge, "-o", bridge, "-j", "ACCEPT"}

// routePods makes the pods of a node reachable from the machine, for the API server.
func routePods(ctx context.Context, n *node) error {
	_, err := output(ctx, "ip", "route", "replace", n.PodCIDR, "via", n.IP)
	return err
}

// networkDown removes the bridge (and with it the routes over it) and the firewall's rule.
func networkDown(ctx context.Context, s *state) error {
	var errs []error
	if s.Firewall {
		if _, err := output(ctx, "iptables", append([]string{"-C"}, forwardRule...)...); err == nil {
			_, err := output(ctx, "iptables", append([]string{"-D"}, forwardRule...)...)
			errs = append(errs, err)
		}
	}
	if rules, err := output(ctx, "ip", "rule", "list", "pref", "1088"); err == nil && strings.Contains(rules, bridge) {
		_, err := output(ctx, "ip", noWayOut("del")...)
		errs = append(errs, err)
	}
	// Asked of the kernel's own list: /sys may be that of another network namespace.
	var links []struct {
		Name   string `json:"ifname"`
		Master string `json:"master"`
	}
	out, err := output(ctx, "ip", "-json", "link", "show")
	if err == nil {
		err = json.Unmarshal([]byte(out), &links)
	}
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list network interfaces: %w", err))...)
	}
	for _, link := range links {
		if link.Name != bridge && link.Master != bridge {
			continue
		}
		if _, err := output(ctx, "ip", "link", "del", link.Name); err != nil {
			if _, still := output(ctx, "ip", "link", "show", link.Name); still == nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
