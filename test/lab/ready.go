package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// addons brings kube-proxy and CoreDNS, sets what kubeadm and the controller manager would on the nodes, and waits for all.
func (l *Lab) addons(ctx context.Context) error {
	names := []string{"kube-proxy.yaml", "coredns.yaml"}
	if l.state.AgentCNI {
		names = append([]string{"cni-agent.yaml"}, names...) // CoreDNS needs it
	}
	for _, name := range names {
		content, err := manifest(name, l.profile.kubeVersion)
		if err != nil {
			return err
		}
		path := filepath.Join(stateDir, name)
		if err := writeFile(path, content, 0o644); err != nil {
			return err
		}
		if err := poll(ctx, patience, func() error { _, err := l.Kubectl(ctx, "apply", "-f", path); return err }); err != nil {
			return fmt.Errorf("apply %s: %w", name, err)
		}
	}
	for _, n := range l.state.Nodes {
		patch := map[string]any{"spec": map[string]any{"podCIDR": n.PodCIDR, "podCIDRs": []string{n.PodCIDR}}}
		if l.profile.criSocket != "" {
			patch["metadata"] = map[string]any{"annotations": map[string]string{"kubeadm.alpha.kubernetes.io/cri-socket": l.profile.criSocket}}
		}
		data, err := json.Marshal(patch)
		if err != nil {
			return err
		}
		err = poll(ctx, patience, func() error { _, err := l.Kubectl(ctx, "patch", "node", n.Name, "-p", string(data)); return err })
		if err != nil {
			return errors.Join(fmt.Errorf("wait for %s to register: %w", n.Name, err), l.why(n))
		}
	}
	return l.WaitReady(ctx, patience)
}

// manifest renders an addon for a release of Kubernetes.
func manifest(name, version string) ([]byte, error) {
	noSlices := ""
	if strings.HasPrefix(version, "1.20.") {
		noSlices = "true"
	}
	return render(name, map[string]string{
		"NoSlices":   noSlices,
		"PodNetwork": podNetwork, "Server": apiServerURL, "DNSIP": dnsIP,
		"ProxyImage": "lab.local/kube-proxy:v" + version, "CoreDNSImage": "lab.local/coredns:v1",
	})
}

// WaitReady waits until every node is Ready and every pod in kube-system is.
func (l *Lab) WaitReady(ctx context.Context, timeout time.Duration) error {
	err := poll(ctx, timeout, func() error {
		out, err := l.Kubectl(ctx, "get", "nodes,pods", "-n", "kube-system", "-o", "json")
		if err != nil {
			return err
		}
		daemons := 1 // kube-proxy
		if l.state.AgentCNI {
			daemons++
		}
		waiting, err := notReady([]byte(out), len(l.state.Nodes), daemons)
		if err != nil {
			return err
		}
		if len(waiting) > 0 {
			return fmt.Errorf("not ready: %s", strings.Join(waiting, ", "))
		}
		return nil
	})
	if err == nil {
		return nil
	}
	errs := []error{fmt.Errorf("wait for the cluster: %w", err)}
	for _, n := range l.state.Nodes {
		errs = append(errs, l.why(n))
	}
	return errors.Join(errs...)
}

// notReady names the nodes and pods of a kubectl listing that are not ready, and what is missing for a cluster of that size:
// its nodes, the pods of so many DaemonSets on each, and two CoreDNS.
func notReady(list []byte, nodes, daemons int) ([]string, error) {
	var objects struct {
		Items []struct {
			Kind     string
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := json.Unmarshal(list, &objects); err != nil {
		return nil, fmt.Errorf("read nodes and pods: %w", err)
	}
	var waiting []string
	seen := map[string]int{}
	for _, o := range objects.Items {
		seen[o.Kind]++
		ready := false
		for _, c := range o.Status.Conditions {
			ready = ready || c.Type == "Ready" && c.Status == "True"
		}
		if !ready {
			waiting = append(waiting, o.Metadata.Name)
		}
	}
	if missing := nodes - seen["Node"]; missing > 0 {
		waiting = append(waiting, fmt.Sprintf("%d nodes to come", missing))
	}
	if missing := nodes*daemons + 2 - seen["Pod"]; missing > 0 {
		waiting = append(waiting, fmt.Sprintf("%d pods to come", missing))
	}
	return waiting, nil
}

// why returns the end of the logs that tell why a node or its pods are not ready.
func (l machines) why(n *node) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := l.Exec(ctx, n.Name, "sh", "-c", `systemctl --failed --no-legend; docker ps -a --format '{{.Names}} {{.Status}}'
		journalctl -q --no-pager -n 25 -u kubelet | cut -c 1-500; journalctl -q --no-pager -n 10 -u docker -u cri-docker -u containerd | cut -c 1-500`)
	if err != nil {
		return fmt.Errorf("ask %s why: %w", n.Name, err)
	}
	return fmt.Errorf("--- %s\n%s", n.Name, out)
}
