package lab

import (
	"bytes"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

//go:embed files
var files embed.FS

// render fills one of the templates below files.
func render(name string, data any) ([]byte, error) {
	t, err := template.New(filepath.Base(name)).Option("missingkey=error").ParseFS(files, "files/"+name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return nil, fmt.Errorf("render %s: %w", name, err)
	}
	return out.Bytes(), nil
}

func renderKubeconfig(user, ca, cert, key string) ([]byte, error) {
	var encoded [3]string
	for i, path := range []string{ca, cert, key} {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("make kubeconfig of %s: %w", user, err)
		}
		encoded[i] = base64.StdEncoding.EncodeToString(data)
	}
	return render("kubeconfig", map[string]string{
		"Server": apiServerURL, "User": user, "CA": encoded[0],
		"Credentials": "client-certificate-data: " + encoded[1] + "\n      client-key-data: " + encoded[2],
	})
}

// nodeFiles writes everything into a node's root that kubeadm, an admin and the lab itself put on top of Debian.
func (l machines) nodeFiles(n *node) error {
	ca, err := os.ReadFile(l.pki.path("ca.crt"))
	if err != nil {
		return fmt.Errorf("read CA certificate: %w", err)
	}
	data := map[string]any{
		"CA":   base64.StdEncoding.EncodeToString(ca),
		"Node": n, "Nodes": l.state.Nodes, "Driver": l.state.Driver, "Endpoint": l.profile.endpoint, "Flags": l.profile.kubeletFlags,
		"HostIP": hostIP, "DNSIP": dnsIP, "PodNetwork": podNetwork, "ServiceRange": serviceRange, "Sysctls": l.profile.sysctls, "AgentCNI": l.state.AgentCNI,
	}
	dropIn := "etc/systemd/system/kubelet.service.d/10-kubeadm.conf"
	if l.profile.usrDropIn {
		dropIn = "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf"
	}
	type file struct {
		path, template string
		mode           os.FileMode
	}
	list := []file{
		{"etc/hostname", "hostname", 0o644},
		{"etc/hosts", "hosts", 0o644},
		{"etc/docker/daemon.json", "daemon.json", 0o644},
		{"etc/cni/net.d/10-lab.conflist", "10-lab.conflist", 0o644},
		{"etc/systemd/system/lab-sysinit.service", "lab-sysinit.service", 0o644},
		{"etc/systemd/system/lab-network.service", "lab-network.service", 0o644},
		{"usr/lib/lab/network", "lab-network", 0o755},
		{"usr/lib/systemd/system/kubelet.service", "kubelet.service", 0o644},
		{dropIn, "10-kubeadm.conf", 0o644},
		{"etc/sysctl.d/k8s.conf", "sysctl.conf", 0o644},
		{"etc/default/kubelet", "default-kubelet", 0o644},
		{"var/lib/kubelet/kubeadm-flags.env", "kubeadm-flags.env", 0o644},
		{"var/lib/kubelet/config.yaml", "kubelet-config.yaml", 0o644},
		{"etc/kubernetes/kubelet.conf", "kubelet.conf", 0o600},
	}
	if l.profile.endpoint != "" {
		list = append(list, file{"var/lib/kubelet/instance-config.yaml", "instance-config.yaml", 0o644},
			file{"usr/lib/systemd/system/cri-docker.service", "cri-docker.service", 0o644},
			file{"usr/lib/systemd/system/cri-docker.socket", "cri-docker.socket", 0o644})
	}
	if !hasSysResource() {
		list = append(list, file{"usr/local/sbin/runc", "runc-wrapper", 0o755})
	}
	for _, f := range list {
		content, err := render(f.template, data)
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(n.Root, f.path), content, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// nodeKeys makes the kubelet's client certificate where kubeadm keeps it, and the CA's.
func (l machines) nodeKeys(n *node) error {
	if err := l.pki.client(n.Name, "system:node:"+n.Name, "system:nodes"); err != nil {
		return err
	}
	var client []byte
	for _, part := range []string{".crt", ".key"} {
		data, err := os.ReadFile(l.pki.path(n.Name + part))
		if err != nil {
			return fmt.Errorf("read key of %s: %w", n.Name, err)
		}
		client = append(client, data...)
	}
	ca, err := os.ReadFile(l.pki.path("ca.crt"))
	if err != nil {
		return fmt.Errorf("read CA certificate: %w", err)
	}
	if l.state.RegistryAuth {
		if err := writeFile(filepath.Join(n.Root, "etc/docker/certs.d", authRegistry, "ca.crt"), ca, 0o644); err != nil {
			return err
		}
	}
	pem := filepath.Join(n.Root, "var/lib/kubelet/pki/kubelet-client-initial.pem")
	return errors.Join(
		writeFile(filepath.Join(n.Root, "etc/kubernetes/pki/ca.crt"), ca, 0o644),
		writeFile(pem, client, 0o600),
		os.Symlink(filepath.Base(pem), filepath.Join(filepath.Dir(pem), "kubelet-client-current.pem")),
	)
}

func writeFile(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path, content, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Chmod(path, mode)
}

// hasSysResource tells whether this process may set negative OOM scores, as runc does for pods; without it nodes need the
// wrapper files/runc-wrapper.
func hasSysResource() bool {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	return sysResourceIn(string(data))
}

// sysResourceIn reads the bounding set of /proc/PID/status for CAP_SYS_RESOURCE, number 24 (capabilities(7)).
func sysResourceIn(status string) bool {
	for line := range strings.Lines(status) {
		var bounding uint64
		if _, err := fmt.Sscanf(line, "CapBnd:\t%x", &bounding); err == nil {
			return bounding&(1<<24) != 0
		}
	}
	return true
}
