package desired

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

const (
	dockerCertsDir   = "/etc/docker/certs.d"
	containerdDropIn = "/etc/systemd/system/containerd.service.d/50-kubectl-runtime.conf"
	wrapperDir       = "/etc/containerd/kubectl-runtime"
	BaseSpecFile     = wrapperDir + "/base-spec.json"
	// maxCertificate is far above any certificate file, in bytes.
	maxCertificate = 1 << 20
)

// IsCarried tells the files beside containerd's config.
func IsCarried(path string) bool {
	base := filepath.Base(path)
	return path == containerdDropIn || filepath.Dir(path) == wrapperDir || base == "hosts.toml" ||
		slices.Contains([]string{".crt", ".cert", ".key"}, filepath.Ext(base))
}

// carrySettings adds Docker's settings to those of containerd's config.
func carrySettings(s *containerd.Settings, found facts.Found, old []byte) error {
	layout, err := containerd.ReadLayout(old, s.Imported...)
	if err != nil {
		return err
	}
	docker := found.Docker
	s.UnprivilegedNetwork = unprivilegedNetwork(found.Facts.DockerVersion, found.Facts.Kernel)
	s.EnableSELinux, s.MaxConcurrentDownloads, s.LogLevel = docker.SELinux, docker.MaxDownloads, docker.LogLevel
	for _, r := range docker.Runtimes {
		binary := r.Path
		if len(r.Args) > 0 {
			binary = filepath.Join(wrapperDir, r.Name)
		}
		s.Runtimes = append(s.Runtimes, containerd.Runtime{Name: r.Name, Binary: binary, Type: r.Type, Options: r.Options})
	}
	// Docker's own names of its own runc need nothing.
	if slices.ContainsFunc(docker.Runtimes, func(r translate.Runtime) bool { return r.Name == docker.DefaultRuntime }) {
		s.DefaultRuntime = docker.DefaultRuntime
	}
	s.Snapshotter = Snapshotter(docker, layout)
	return nil
}

// unprivilegedNetwork tells whether Docker gave each container ip_unprivileged_port_start=0 and an open ping_group_range, as 20.10 and
// later do (moby daemon/oci_linux.go, WithCommonOptions). containerd refuses to do so on a Linux before 4.11.
func unprivilegedNetwork(docker, kernel string) bool {
	return version.AtLeast(docker, 20, 10) && version.AtLeast(kernel, 4, 11)
}

// Snapshotter is the one that takes the place of Docker's storage driver; empty where containerd's config, or its default, decides.
func Snapshotter(docker translate.Settings, layout containerd.Layout) string {
	if layout.NamesSnapshotter {
		return ""
	}
	return map[string]string{"vfs": "native", "btrfs": "btrfs", "zfs": "zfs"}[docker.StorageDriver]
}

// CarriedFiles are the files beside containerd's config.
func CarriedFiles(ctx context.Context, h *node.Host, found facts.Found, config ContainerdConfig) (files []containerd.File, warnings []string, err error) {
	layout := config.Layout
	certs, err := readHosts(dockerCertsDir)
	if err != nil {
		return nil, nil, err
	}
	docker := found.Docker
	inline, err := containerd.InlineHosts(config.old, config.settings)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", found.ContainerdConfig, err)
	}
	have, err := readHosts(layout.RegistryDir)
	if err != nil {
		return nil, nil, err
	}
	for _, host := range slices.Sorted(maps.Keys(inline)) {
		files = append(files, containerd.File{Path: filepath.Join(layout.RegistryDir, host, "hosts.toml"), Data: inline[host]["hosts.toml"], Mode: 0o644})
		have[host] = inline[host]
	}
	dockers, warnings := containerd.Registries(layout.RegistryDir, docker.Mirrors, docker.Insecure, certs, have)
	files = append(files, dockers...)
	for _, r := range docker.Runtimes {
		if len(r.Args) > 0 {
			files = append(files, containerd.File{Path: filepath.Join(wrapperDir, r.Name), Data: containerd.Wrapper(r.Path, r.Args), Mode: 0o755})
		}
	}
	spec, err := baseSpec(ctx, h, found, config.limits)
	if err != nil {
		return nil, nil, err
	}
	if spec != nil {
		files = append(files, *spec)
	}
	environment, err := proxyEnvironment(ctx, h, found)
	if err != nil {
		return nil, nil, err
	}
	if dropIn := containerd.DropIn(environment); dropIn != nil {
		// systemd shows its properties to everyone, so the mode hides nothing there; but backups read the file.
		files = append(files, containerd.File{Path: containerdDropIn, Data: dropIn, Mode: 0o600})
	}
	return files, warnings, nil
}

// readHosts reads a certs.d directory; one that does not exist is empty.
func readHosts(dir string) (containerd.HostFiles, error) {
	hosts := containerd.HostFiles{}
	paths, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a dangling link: neither Docker nor containerd could read it
		}
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() || info.Size() > maxCertificate {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		name := filepath.Base(filepath.Dir(path))
		if hosts[name] == nil {
			hosts[name] = map[string][]byte{}
		}
		hosts[name][filepath.Base(path)] = data
	}
	return hosts, nil
}

// baseSpec is the file that gives containers the limits that Docker gave them, nil if there are none.
func baseSpec(ctx context.Context, h *node.Host, found facts.Found, carried []translate.Limit) (*containerd.File, error) {
	if len(carried) == 0 || found.ContainerdBinary == "" {
		return nil, nil
	}
	if found.Install != nil && host.Absent(found.ContainerdBinary) {
		return nil, nil // the defaults of what is yet to be installed cannot be asked for; the step that writes the file does
	}
	// Every package of containerd has ctr beside it; its defaults are those of that release.
	ctr := filepath.Join(filepath.Dir(found.ContainerdBinary), "ctr")
	defaults, err := h.Runner.Run(ctx, ctr, "oci", "spec")
	if err != nil {
		return nil, fmt.Errorf("find what containers of containerd %s begin with, to add Docker's limits: %w", found.Facts.ContainerdVersion, err)
	}
	var limits []containerd.Rlimit
	for _, l := range carried {
		limits = append(limits, containerd.Rlimit(l))
	}
	data, err := containerd.BaseSpec([]byte(defaults), limits)
	return &containerd.File{Path: BaseSpecFile, Data: data, Mode: 0o644}, err
}

// proxyEnvironment is what containerd needs to reach registries as dockerd does; nothing if it has proxies of its own. CNI plugins
// inherit it from containerd, so the API servers that they and the kubelet talk to are excepted.
func proxyEnvironment(ctx context.Context, h *node.Host, found facts.Found) ([]string, error) {
	proxy := found.Docker.Proxy
	if proxy.HTTP+proxy.HTTPS == "" {
		return nil, nil
	}
	p, err := h.Systemd.Show(ctx, node.ContainerdUnit, "Environment", "EnvironmentFiles")
	if err != nil {
		return nil, err
	}
	for _, path := range strings.Fields(p["EnvironmentFiles"]) {
		if data, err := os.ReadFile(path); err == nil {
			p["Environment"] += " " + string(data)
		}
	}
	if theirs := strings.ToUpper(p["Environment"]); strings.Contains(theirs, "HTTP_PROXY=") || strings.Contains(theirs, "HTTPS_PROXY=") {
		return nil, nil
	}
	except := strings.Split(proxy.No, ",")
	for _, host := range apiServers(found.CNIConfDir) {
		if !slices.Contains(except, host) {
			except = append(except, host)
		}
	}
	except = append(except, ".svc", ".cluster.local")
	except = slices.DeleteFunc(except, func(s string) bool { return strings.TrimSpace(s) == "" })
	var out []string
	for _, v := range [][2]string{{"HTTP_PROXY", proxy.HTTP}, {"HTTPS_PROXY", proxy.HTTPS}, {"NO_PROXY", strings.Join(except, ",")}} {
		if v[1] != "" {
			out = append(out, v[0]+"="+v[1])
		}
	}
	return out, nil
}

// apiServers are the hosts in kubeconfigs of CNI plugins and of the kubelet.
func apiServers(cniConfDir string) []string {
	var hosts []string
	for _, pattern := range []string{filepath.Join(cniConfDir, "*kubeconfig*"), filepath.Join(cniConfDir, "*", "*kubeconfig*"), "/etc/kubernetes/kubelet.conf"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			for line := range bytes.Lines(data) {
				server, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "server:")
				if !ok {
					continue
				}
				if u, err := url.Parse(strings.Trim(strings.TrimSpace(server), `"'`)); err == nil && u.Hostname() != "" {
					hosts = append(hosts, u.Hostname())
				}
			}
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}
