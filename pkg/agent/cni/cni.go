// Package cni detaches Docker's pods from their network as dockershim would have, for kubelets up to 1.23: their CRI socket
// dies with the kubelet, and `docker stop` runs no CNI DEL. It also finds leases of host-local's that were left behind.
// It never attaches anything. The agent's steps call it.
package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

const (
	// DefaultConfDir is where kubelet and containerd look for network configurations.
	DefaultConfDir = "/etc/cni/net.d"
	// CacheDir is where dockershim and cri-dockerd keep libcni's results (containerd uses /var/lib/cni).
	CacheDir = "/var/lib/cni/cache"
	// defaultIfName is the pod's interface in dockershim, cri-dockerd and containerd.
	defaultIfName = "eth0"
	// loopback is the network that dockershim and containerd attach every pod to beside its own.
	loopback = "cni-loopback"
)

// defaultBinDirs are where plugins are: most CNI DaemonSets and the kubelet's default, then Debian's package, then
// Fedora's and openSUSE's.
var defaultBinDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}

// Network is the pod network's configuration on this host.
type Network struct {
	ConfDir string
	// BinDirs are searched in order. The first one holds every plugin, unless Missing says otherwise; it is the one to
	// give to a containerd, which takes a single directory before 2.1.
	BinDirs []string
	// CacheDir holds libcni's results; they tell how each container was attached.
	CacheDir string
	// Name is that of the network new pods join; empty if no configuration was found.
	Name string
	// File is the configuration's file.
	File string
	// Missing are the configuration's plugins, IPAM included, that BinDirs[0] lacks.
	Missing []string

	list *libcni.NetworkConfigList
}

// Detect reads the network configuration that dockershim uses: the first usable *.conf, *.conflist or *.json of confDir in
// lexical order. A binDir that is set is searched first; the usual directories follow it. Empty arguments mean the defaults.
// A host without any configuration is not an error: Name is empty.
func Detect(confDir, binDir string) (Network, error) {
	if confDir == "" {
		confDir = DefaultConfDir
	}
	network := Network{ConfDir: confDir, CacheDir: CacheDir}
	files, err := libcni.ConfFiles(confDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return Network{}, fmt.Errorf("list CNI configurations in %s: %w", confDir, err)
	}
	slices.Sort(files)
	for _, file := range files {
		list, err := loadList(file)
		if err != nil || len(list.Plugins) == 0 {
			continue // as dockershim and containerd do; an unusable file is not ours to judge
		}
		network.Name, network.File, network.list = list.Name, file, list
		break
	}
	network.BinDirs, network.Missing = pickBinDirs(binDir, plugins(network.list))
	return network, nil
}

// loadList reads a list, or a single plugin as a list of one.
func loadList(file string) (*libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseList(data, strings.HasSuffix(file, ".conflist"))
}

func parseList(data []byte, isList bool) (*libcni.NetworkConfigList, error) {
	if isList {
		return libcni.NetworkConfFromBytes(data)
	}
	conf, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if conf.Network.Type == "" {
		return nil, errors.New("no plugin type")
	}
	return libcni.ConfListFromConf(conf) //nolint:staticcheck // dockershim takes such files, so nodes have them
}

// plugins names the programs that a list runs.
func plugins(list *libcni.NetworkConfigList) []string {
	if list == nil {
		return nil
	}
	var names []string
	for _, plugin := range list.Plugins {
		for _, name := range []string{plugin.Network.Type, plugin.Network.IPAM.Type} {
			if name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// pickBinDirs puts the directory first that holds the most of the plugins; among equals the order of preference decides.
// Directories that do not exist are left out, but there is always one.
func pickBinDirs(preferred string, names []string) (dirs, missing []string) {
	candidates := defaultBinDirs
	if preferred != "" {
		candidates = append([]string{preferred}, candidates...)
	}
	best := -1
	for _, dir := range candidates {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() || slices.Contains(dirs, dir) {
			continue
		}
		var lacks []string
		for _, name := range names {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
				lacks = append(lacks, name)
			}
		}
		dirs = append(dirs, dir)
		if best < 0 || len(lacks) < len(missing) {
			best, missing = len(dirs)-1, lacks
		}
	}
	if best < 0 {
		return candidates[:1], names
	}
	first := dirs[best]
	return append([]string{first}, slices.Delete(dirs, best, best+1)...), missing
}

// PortMapping is a host port of a pod's, in the form of CNI's portMappings capability.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp or sctp
	HostIP        string `json:"hostIP"`
}

// Attachment is a sandbox on the pod network.
type Attachment struct {
	ContainerID string
	// Netns is the path of the network namespace, /proc/<pid>/ns/net while the sandbox runs. Empty, or a path that does not
	// exist, means that it is gone; plugins then free what they hold outside of it.
	Netns                string
	Namespace, Name, UID string
	// IfName is the interface in the pod; empty means eth0.
	IfName string
	// PortMappings are used if libcni's cache does not know the container.
	PortMappings []PortMapping
}

// ErrNoNetwork is returned by Del if neither the cache nor the configuration tells how the container was attached.
var ErrNoNetwork = errors.New("no CNI configuration")

// Del calls CNI DEL for every network that libcni's cache says the container joined, with the configuration of that time,
// or else for the host's network. It may be repeated: plugins have to accept that, and what they say about files that no
// longer exist is ignored as in dockershim.
func (n Network) Del(ctx context.Context, a Attachment) error {
	if a.ContainerID == "" {
		return errors.New("CNI DEL: no container ID")
	}
	if a.IfName == "" {
		a.IfName = defaultIfName
	}
	if _, err := os.Stat(a.Netns); err != nil {
		a.Netns = ""
	}
	config := libcni.NewCNIConfigWithCacheDir(n.BinDirs, n.CacheDir, nil)
	cached, err := config.GetCachedAttachments(a.ContainerID)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("CNI DEL %s/%s: read the cache in %s: %w", a.Namespace, a.Name, n.CacheDir, err)
	}
	var errs []error
	deleted := false
	for _, attachment := range cached {
		if attachment.Network == loopback {
			continue // dockershim adds it without ever deleting it
		}
		list, err := parseCached(attachment.Config)
		if err != nil {
			continue // written by an older libcni; the host's own configuration has to do
		}
		runtime := &libcni.RuntimeConf{
			ContainerID: a.ContainerID, NetNS: a.Netns, IfName: attachment.IfName,
			Args: attachment.CniArgs, CapabilityArgs: attachment.CapabilityArgs,
		}
		errs = append(errs, del(ctx, config, list, runtime))
		deleted = true
	}
	if !deleted {
		if n.list == nil {
			return fmt.Errorf("CNI DEL %s/%s: %w in %s", a.Namespace, a.Name, ErrNoNetwork, n.ConfDir)
		}
		errs = append(errs, del(ctx, config, n.list, a.runtimeConf()))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("CNI DEL %s/%s (container %s): %w", a.Namespace, a.Name, a.ContainerID, err)
	}
	return nil
}

// parseCached tells a list from a single plugin by its content: the cache holds either.
func parseCached(data []byte) (*libcni.NetworkConfigList, error) {
	list, err := parseList(data, true)
	if err == nil && len(list.Plugins) > 0 {
		return list, nil
	}
	return parseList(data, false)
}

// runtimeConf is what dockershim passes (network/cni/cni.go, buildCNIRuntimeConf), with the UID that containerd adds.
func (a Attachment) runtimeConf() *libcni.RuntimeConf {
	runtime := &libcni.RuntimeConf{
		ContainerID: a.ContainerID, NetNS: a.Netns, IfName: a.IfName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", a.Namespace},
			{"K8S_POD_NAME", a.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", a.ContainerID},
		},
		CapabilityArgs: map[string]any{"portMappings": a.PortMappings},
	}
	if a.PortMappings == nil {
		runtime.CapabilityArgs["portMappings"] = []PortMapping{}
	}
	if a.UID != "" {
		runtime.Args = append(runtime.Args, [2]string{"K8S_POD_UID", a.UID})
	}
	return runtime
}

func del(ctx context.Context, config *libcni.CNIConfig, list *libcni.NetworkConfigList, runtime *libcni.RuntimeConf) error {
	err := config.DelNetworkList(ctx, list, runtime)
	if err != nil && strings.Contains(err.Error(), "no such file or directory") {
		return nil // as in dockershim's deleteFromNetwork
	}
	return err
}
