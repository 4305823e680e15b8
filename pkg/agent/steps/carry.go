package steps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

const (
	dockerUnit       = "docker.service"
	dockerCertsDir   = "/etc/docker/certs.d"
	containerdDropIn = "/etc/systemd/system/containerd.service.d/50-kubectl-runtime.conf"
	wrapperDir       = "/etc/containerd/kubectl-runtime"
	// maxCertificate is far above any certificate file, in bytes.
	maxCertificate = 1 << 20
)

// isCarried tells the files beside containerd's config.
func isCarried(path string) bool {
	base := filepath.Base(path)
	return path == containerdDropIn || filepath.Dir(path) == wrapperDir || base == "hosts.toml" ||
		slices.Contains([]string{".crt", ".cert", ".key"}, filepath.Ext(base))
}

// lookAtDockerConfig reads how Docker was set up, from daemon.json and from the process that runs.
func (i *inspection) lookAtDockerConfig(ctx context.Context) error {
	in := translate.Input{}
	p, err := i.h.Systemd.Show(ctx, dockerUnit, "MainPID")
	if err != nil {
		return err
	}
	if pid, _ := strconv.Atoi(p["MainPID"]); pid > 0 {
		process, err := host.ReadProcess(proc, pid)
		if err != nil {
			return err
		}
		environ, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "environ"))
		if err != nil {
			return fmt.Errorf("read dockerd's environment: %w", err)
		}
		in.Args, in.Environ = process.Args, strings.Split(string(environ), "\x00")
	}
	in.File = translate.ConfigFile(in.Args)
	if in.Data, err = readFile(in.File); err != nil {
		return err
	}
	settings, findings, err := translate.Docker(in)
	if err != nil {
		return refuse("correct it, and restart Docker", "dockerd would not start with its configuration again, and there would be no way back: %v", err)
	}
	i.Docker = settings
	for _, finding := range findings {
		if finding.Verdict == translate.Warned {
			i.warn("Docker's %s: %s", finding.Key, finding.Text)
		} else {
			i.note(protocol.CheckSetting, "%s: %s: %s", finding.Key, finding.Verdict, finding.Text)
		}
	}
	return nil
}

// lookAtCarried tries what containerd-config will do, so that what cannot be done refuses the switch and warnings come first.
func (i *inspection) lookAtCarried(ctx context.Context) error {
	config, err := readFile(i.ContainerdConfig)
	if err != nil {
		return err
	}
	if _, err := renderContainerd(i.inventory, config); err != nil {
		return fmt.Errorf("%s: %w", i.ContainerdConfig, err)
	}
	_, warnings, err := carryFiles(ctx, i.h, i.inventory)
	for _, warning := range warnings {
		i.warn("%s", warning)
	}
	return err
}

// carrySettings adds Docker's settings to those of containerd's config.
func carrySettings(s *containerd.Settings, found inventory, old []byte) error {
	layout, err := containerd.ReadLayout(old)
	if err != nil {
		return err
	}
	docker := found.Docker
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
	s.Snapshotter = carriedSnapshotter(docker, layout)
	return nil
}

// carriedSnapshotter is the one that stands for Docker's storage driver; empty where containerd's config, or its default, decides.
func carriedSnapshotter(docker translate.Settings, layout containerd.Layout) string {
	if layout.NamesSnapshotter {
		return ""
	}
	return map[string]string{"vfs": "native", "btrfs": "btrfs", "zfs": "zfs"}[docker.StorageDriver]
}

// carryFiles are the files beside containerd's config.
func carryFiles(ctx context.Context, h *Host, found inventory) (files []containerd.File, warnings []string, err error) {
	config, err := readFile(found.ContainerdConfig)
	if err != nil {
		return nil, nil, err
	}
	layout, err := containerd.ReadLayout(config)
	if err != nil {
		return nil, nil, err
	}
	certs, err := readHosts(dockerCertsDir)
	if err != nil {
		return nil, nil, err
	}
	docker := found.Docker
	switch {
	case len(docker.Mirrors)+len(docker.Insecure)+len(certs) == 0:
	case layout.RegistryDir == "":
		warnings = append(warnings, found.ContainerdConfig+" has registries of its own, in the older way: Docker's mirrors, insecure registries and certificates are not added to them")
	default:
		have, err := readHosts(layout.RegistryDir)
		if err != nil {
			return nil, nil, err
		}
		files, warnings = containerd.Registries(layout.RegistryDir, docker.Mirrors, docker.Insecure, certs, have)
	}
	for _, r := range docker.Runtimes {
		if len(r.Args) > 0 {
			files = append(files, containerd.File{Path: filepath.Join(wrapperDir, r.Name), Data: containerd.Wrapper(r.Path, r.Args), Mode: 0o755})
		}
	}
	environment, err := proxyEnvironment(ctx, h, found)
	if err != nil {
		return nil, nil, err
	}
	if dropIn := containerd.DropIn(environment, limits(docker.Ulimits)); dropIn != nil {
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

// limits are what follows Limit in a unit file.
func limits(ulimits []translate.Limit) []string {
	number := func(n int64) string {
		if n == -1 {
			return "infinity"
		}
		return strconv.FormatInt(n, 10)
	}
	var out []string
	for _, l := range ulimits {
		out = append(out, strings.ToUpper(l.Name)+"="+number(l.Soft)+":"+number(l.Hard))
	}
	return out
}

// proxyEnvironment is what containerd needs to reach registries as dockerd does; nothing if it has proxies of its own. CNI plugins
// inherit it from containerd, so the API servers that they and the kubelet talk to are excepted.
func proxyEnvironment(ctx context.Context, h *Host, found inventory) ([]string, error) {
	proxy := found.Docker.Proxy
	if proxy.HTTP+proxy.HTTPS == "" {
		return nil, nil
	}
	p, err := h.Systemd.Show(ctx, containerdUnit, "Environment", "EnvironmentFiles")
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
