package lab

import (
	"fmt"
	"slices"
	"strings"
)

// The profiles: which releases a lab cluster is made of.
const (
	// Dockershim is the old world: kubelet 1.23 with dockershim under a 1.24 control plane, on Debian 12 with Docker 20.10
	// and containerd 1.6.
	Dockershim = "dockershim"
	// CRIDockerd is today's: Kubernetes 1.37 on Debian 13 with Docker 26.1, cri-dockerd and containerd 2.4.
	CRIDockerd = "cri-dockerd"
	// Oldest is Kubernetes 1.20, kubelets with dockershim included, on the nodes of Dockershim.
	Oldest = "oldest"
)

// profile says what the nodes and the control plane of a lab are made of. Build names are folders of test/lab/build.
type profile struct {
	name         string
	suite        string // Debian release
	packages     []string
	controlPlane string   // build of apiserver, controller-manager, scheduler and kube-proxy
	kubeVersion  string   // of the control plane and kube-proxy, without v
	kubelet      string   // build
	fromBuilds   []string // builds whose binaries replace Debian's in /usr/bin of a node
	binds        []string // builds whose binaries are bound read-only into a node's /usr/bin
	pauseImage   string   // what the node's Docker shim asks for by default
	usrDropIn    bool     // kubeadm's kubelet drop-in is in /usr/lib/systemd, as in packages since 2023
	criSocket    string   // value of kubeadm's cri-socket annotation, empty where kubeadm writes none
	endpoint     string   // containerRuntimeEndpoint in the kubelet's configuration, empty where it has no such field
	kubeletFlags string   // KUBELET_KUBEADM_ARGS
	sysctls      []string // what kubeadm's installation page told to put into /etc/sysctl.d/k8s.conf
}

var basePackages = []string{
	"systemd", "systemd-sysv", "dbus", "docker.io", "containerd", "runc", "iptables", "iproute2", "ipset", "conntrack",
	"ethtool", "socat", "util-linux", "mount", "kmod", "procps", "ca-certificates", "containernetworking-plugins",
	"busybox-static", "curl",
}

// profileNamed returns the profile of that name.
func profileNamed(name string) (profile, error) {
	profiles := []profile{
		{
			name: Dockershim, suite: "bookworm", packages: basePackages,
			controlPlane: "kubernetes-1.24", kubeVersion: "1.24.17", kubelet: "kubernetes-1.23",
			pauseImage:   "registry.k8s.io/pause:3.6",
			criSocket:    "/var/run/dockershim.sock",
			kubeletFlags: "--network-plugin=cni --pod-infra-container-image=registry.k8s.io/pause:3.6",
			// Up to 1.23 the page left ip_forward to Docker.
			sysctls: []string{"net.bridge.bridge-nf-call-ip6tables = 1", "net.bridge.bridge-nf-call-iptables = 1"},
		},
		{
			name: Oldest, suite: "bookworm", packages: basePackages,
			controlPlane: "kubernetes-1.20", kubeVersion: "1.20.15", kubelet: "kubernetes-1.20",
			pauseImage:   "registry.k8s.io/pause:3.6",
			criSocket:    "/var/run/dockershim.sock",
			kubeletFlags: "--network-plugin=cni --pod-infra-container-image=registry.k8s.io/pause:3.6",
			sysctls:      []string{"net.bridge.bridge-nf-call-ip6tables = 1", "net.bridge.bridge-nf-call-iptables = 1"},
		},
		{
			name: CRIDockerd, suite: "trixie", packages: append(slices.Clone(basePackages), "docker-cli"),
			controlPlane: "kubernetes-1.37", kubeVersion: "1.37.2", kubelet: "kubernetes-1.37",
			fromBuilds: []string{"containerd"}, binds: []string{"cri-dockerd"},
			pauseImage: "registry.k8s.io/pause:3.10", usrDropIn: true,
			sysctls:  []string{"net.ipv4.ip_forward = 1"},
			endpoint: "unix:///run/cri-dockerd.sock",
		},
	}
	var names []string
	for _, p := range profiles {
		if p.name == name {
			return p, nil
		}
		names = append(names, p.name)
	}
	return profile{}, fmt.Errorf("profile %q: not one of %s", name, strings.Join(names, ", "))
}

// builds lists the folders of test/lab/build that the profile needs.
func (p profile) builds() []string {
	names := []string{"etcd", p.controlPlane, p.kubelet, kubectlBuild, "coredns", "cri-tools", "registry"}
	names = append(append(names, p.fromBuilds...), p.binds...)
	slices.Sort(names)
	return slices.Compact(names)
}
