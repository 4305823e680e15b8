package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// Dockershim is the endpoint of a kubelet that talks to Docker itself.
const Dockershim = "dockershim"

// DefaultInstanceConfig is where kubeadm 1.34 and later keep the endpoint, and write it back into config.yaml from.
const DefaultInstanceConfig = "/var/lib/kubelet/instance-config.yaml"

// Setup is how a kubelet is set up on a host.
type Setup struct {
	Version version.Version
	// Args are those of the running process, the program first.
	Args []string
	// UnitFiles are the unit's file and drop-ins, in the order in which systemd applies them.
	UnitFiles []string
	// InstanceConfig is the file that kubeadm patches config.yaml from; empty means DefaultInstanceConfig.
	InstanceConfig string
	// LogMaxSize (bytes) and LogMaxFiles are what Docker rotated containers' logs at, 0 where it did not. They go to the config
	// unless the kubelet has its own.
	LogMaxSize  int64
	LogMaxFiles int
	// Read reads the host's files.
	Read Reader
	// ListConfigDir lists the files of --config-dir that count, in order; nil if there is none.
	ListConfigDir func(dir string) ([]string, error)
}

// Edit is one file's planned change.
type Edit struct {
	Path     string
	Old, New []byte
}

// Flag returns the value of a flag of the running kubelet.
func (s Setup) Flag(name string) (string, bool) { return lastFlag(parseFlags(s.Args), name) }

// ConfigFile returns the path of the running kubelet's configuration file, empty if it has none.
func (s Setup) ConfigFile() string {
	file, _ := s.Flag("config")
	return file
}

// Endpoint returns the CRI endpoint of the running kubelet, or Dockershim.
func (s Setup) Endpoint() (string, error) {
	return s.endpoint(parseFlags(s.Args), s.Read)
}

// endpoint follows the kubelet's own rules (cmd/kubelet/app/options of 1.23, 1.24, 1.26, 1.27): see the table in the tests.
func (s Setup) endpoint(flags []Flag, read Reader) (string, error) {
	flag, isSet := lastFlag(flags, "container-runtime-endpoint")
	if s.Version.Minor <= 23 {
		runtime, _ := lastFlag(flags, "container-runtime")
		switch {
		case runtime == "" || runtime == "docker":
			return Dockershim, nil
		case isSet:
			return normalise(flag), nil
		default:
			return "unix:///var/run/dockershim.sock", nil
		}
	}
	if isSet && flag != "" {
		return normalise(flag), nil
	}
	if s.Version.Minor < 27 {
		return "", fmt.Errorf("kubelet %s has no --container-runtime-endpoint", s.Version)
	}
	endpoint := "unix:///run/containerd/containerd.sock"
	files, err := s.configFiles(flags)
	if err != nil {
		return "", err
	}
	for _, file := range files {
		data, err := read.bounded(file)
		if err != nil {
			return "", fmt.Errorf("read kubelet config: %w", err)
		}
		c, err := parseConfig(data)
		if err != nil {
			return "", fmt.Errorf("read kubelet config %s: %w", file, err)
		}
		if c.ContainerRuntimeEndpoint != "" {
			endpoint = normalise(c.ContainerRuntimeEndpoint)
		}
	}
	return endpoint, nil
}

// configFiles are --config and then the files of --config-dir, which override it.
func (s Setup) configFiles(flags []Flag) ([]string, error) {
	var files []string
	if file, _ := lastFlag(flags, "config"); file != "" {
		files = append(files, file)
	}
	if dir, _ := lastFlag(flags, "config-dir"); dir != "" {
		if s.ListConfigDir == nil {
			return nil, fmt.Errorf("read kubelet config directory %s: cannot list it", dir)
		}
		more, err := s.ListConfigDir(dir)
		if err != nil {
			return nil, fmt.Errorf("read kubelet config directory %s: %w", dir, err)
		}
		files = append(files, more...)
	}
	return files, nil
}

// normalise adds the scheme that the kubelet falls back to, and writes /var/run as /run, which it links to.
func normalise(endpoint string) string {
	if strings.HasPrefix(endpoint, "/") {
		endpoint = "unix://" + endpoint
	}
	return strings.Replace(endpoint, "unix:///var/run/", "unix:///run/", 1)
}

// SameEndpoint reports whether two endpoints are the same socket.
func SameEndpoint(a, b string) bool { return normalise(a) == normalise(b) }

// dockerOnly are the flags that only dockershim understood: 1.24 removed them, and they mean nothing with containerd.
var dockerOnly = []string{
	"network-plugin", "network-plugin-mtu", "cni-bin-dir", "cni-conf-dir", "cni-cache-dir",
	"docker", "docker-endpoint", "docker-root", "docker-only", "docker-env-metadata-whitelist", "docker-tls", "docker-tls-ca",
	"docker-tls-cert", "docker-tls-key", "image-pull-progress-deadline", "experimental-dockershim-root-directory",
}

// Plan returns the changes of files that make this kubelet use the CRI endpoint. It returns an error, with the file's name,
// where it cannot be sure: where the running kubelet's flags are not what its files say, or would still not be right.
func (s Setup) Plan(endpoint string) ([]Edit, error) {
	svc, err := loadService(s.Read, s.UnitFiles)
	if err != nil {
		return nil, err
	}
	if difference, ok := svc.matches(s.Args); !ok {
		return nil, fmt.Errorf("the running kubelet does not have the flags that its unit (%s) says: %s; restart the kubelet, or undo what was edited since it started",
			strings.Join(s.UnitFiles, ", "), difference)
	}
	flags := parseFlags(svc.args())
	e := &edits{service: svc, splices: map[string][]splice{}}
	if err := s.planFlags(e, flags, endpoint); err != nil {
		return nil, err
	}
	changed := e.apply()
	if err := s.planConfig(changed, flags, endpoint); err != nil {
		return nil, err
	}
	if err := s.planLogs(changed, flags); err != nil {
		return nil, err
	}
	if err := s.check(changed, flags, endpoint); err != nil {
		return nil, err
	}
	var plan []Edit
	for path, content := range changed {
		old, err := s.Read(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("plan the kubelet's files: %w", err)
		}
		if slices.Contains(s.UnitFiles, path) && !adminsOwn(path) {
			return nil, fmt.Errorf("the kubelet's runtime is set in %s, which belongs to a package: copy it below /etc/systemd/system first", path)
		}
		plan = append(plan, Edit{Path: path, Old: old, New: content})
	}
	slices.SortFunc(plan, func(a, b Edit) int { return strings.Compare(a.Path, b.Path) })
	return plan, nil
}

func (s Setup) planFlags(e *edits, flags []Flag, endpoint string) error {
	var endpoints, runtimes int
	for _, f := range flags {
		var err error
		switch {
		case f.Name == "container-runtime-endpoint":
			endpoints++
			err = e.setFlag(f, endpoint)
		case f.Name == "image-service-endpoint":
			err = e.setFlag(f, endpoint)
		case f.Name == "container-runtime":
			runtimes++
			err = e.setFlag(f, "remote")
		case slices.Contains(dockerOnly, f.Name):
			err = e.removeFlag(f)
		}
		if err != nil {
			return fmt.Errorf("kubelet flag --%s: %w", f.Name, err)
		}
	}
	var missing []string
	if s.Version.Minor <= 23 && runtimes == 0 {
		missing = append(missing, "--container-runtime=remote")
	}
	if s.Version.Minor < 27 && endpoints == 0 {
		missing = append(missing, "--container-runtime-endpoint="+endpoint)
	}
	if file, _ := lastFlag(flags, "config"); s.Version.Minor >= 27 && endpoints == 0 && file == "" {
		missing = append(missing, "--container-runtime-endpoint="+endpoint)
	}
	if len(missing) > 0 {
		return e.appendFlags(missing...)
	}
	return nil
}

// planConfig sets the endpoint in every file that names one, so that no later source and no `kubeadm upgrade` takes it back.
func (s Setup) planConfig(changed map[string][]byte, flags []Flag, endpoint string) error {
	if s.Version.Minor < 27 {
		return nil // the field does not exist; writing it is silently ignored
	}
	files, err := s.configFiles(flags)
	if err != nil {
		return err
	}
	_, byFlag := lastFlag(flags, "container-runtime-endpoint")
	main, _ := lastFlag(flags, "config")
	instance := s.InstanceConfig
	if instance == "" {
		instance = DefaultInstanceConfig
	}
	for _, file := range append(files, instance) {
		data, err := s.Read.bounded(file)
		if errors.Is(err, fs.ErrNotExist) && file == instance {
			continue
		}
		if err != nil {
			return fmt.Errorf("read kubelet config: %w", err)
		}
		c, err := parseConfig(data)
		if err != nil {
			return fmt.Errorf("read kubelet config %s: %w", file, err)
		}
		edited := data
		if c.ContainerRuntimeEndpoint != "" || file == main && !byFlag {
			edited, err = setYAML(edited, "containerRuntimeEndpoint", endpoint)
		}
		if err == nil && c.ImageServiceEndpoint != "" {
			edited, err = setYAML(edited, "imageServiceEndpoint", endpoint)
		}
		if err != nil {
			return fmt.Errorf("edit kubelet config %s: %w", file, err)
		}
		if string(edited) != string(data) {
			changed[file] = edited
		}
	}
	return nil
}

// check puts the command line together again from the changed files, and looks at nothing but it.
func (s Setup) check(changed map[string][]byte, before []Flag, endpoint string) error {
	read := func(path string) ([]byte, error) {
		if data, ok := changed[path]; ok {
			return data, nil
		}
		return s.Read(path)
	}
	svc, err := loadService(read, s.UnitFiles)
	if err != nil {
		return fmt.Errorf("check the kubelet's new flags: %w", err)
	}
	flags := parseFlags(svc.args())
	got, err := s.endpoint(flags, read)
	if err != nil {
		return fmt.Errorf("check the kubelet's new flags: %w", err)
	}
	if got != normalise(endpoint) {
		return fmt.Errorf("cannot change the kubelet's runtime safely: with the changes to %s it would use %s, not %s",
			strings.Join(keys(changed), ", "), got, endpoint)
	}
	concerned := append([]string{"container-runtime", "container-runtime-endpoint", "image-service-endpoint"}, dockerOnly...)
	others := func(flags []Flag) []string {
		var out []string
		for _, f := range flags {
			if !slices.Contains(concerned, f.Name) {
				out = append(out, f.Name+"="+f.Value)
			}
		}
		return out
	}
	if !slices.Equal(others(before), others(flags)) {
		return fmt.Errorf("cannot change the kubelet's runtime safely: the changes to %s would change other flags, too", strings.Join(keys(changed), ", "))
	}
	for _, f := range flags {
		if slices.Contains(dockerOnly, f.Name) {
			return fmt.Errorf("cannot change the kubelet's runtime safely: --%s would stay", f.Name)
		}
	}
	return nil
}

func keys(m map[string][]byte) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// CgroupDriver returns the driver that the kubelet is set to: the flag's, the config's, or its default, cgroupfs.
func (s Setup) CgroupDriver() (string, error) {
	if driver, ok := s.Flag("cgroup-driver"); ok && driver != "" {
		return driver, nil
	}
	driver := "cgroupfs"
	err := s.eachConfig(func(c config) {
		if c.CgroupDriver != "" {
			driver = c.CgroupDriver
		}
	})
	return driver, err
}

// HealthzURL returns where the kubelet says whether it is healthy, empty if that is switched off.
func (s Setup) HealthzURL() (string, error) {
	port, address := 10248, "127.0.0.1"
	err := s.eachConfig(func(c config) {
		if c.HealthzPort != nil {
			port = *c.HealthzPort
		}
		if c.HealthzBindAddress != "" {
			address = c.HealthzBindAddress
		}
	})
	if err != nil {
		return "", err
	}
	if flag, ok := s.Flag("healthz-port"); ok {
		if _, err := fmt.Sscanf(flag, "%d", &port); err != nil {
			return "", fmt.Errorf("kubelet flag --healthz-port=%s: %w", flag, err)
		}
	}
	if flag, ok := s.Flag("healthz-bind-address"); ok && flag != "" {
		address = flag
	}
	if port == 0 {
		return "", nil
	}
	if port < 0 || port > 65535 {
		return "", fmt.Errorf("the kubelet's health endpoint: %d is not a port", port)
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return "", fmt.Errorf("the kubelet's health endpoint: %q is not an address", address)
	}
	switch ip {
	case netip.IPv4Unspecified():
		address = "127.0.0.1"
	case netip.IPv6Unspecified():
		address = "::1"
	}
	u := url.URL{Scheme: "http", Host: net.JoinHostPort(address, strconv.Itoa(port)), Path: "/healthz"}
	return u.String(), nil
}

func (s Setup) eachConfig(visit func(config)) error {
	files, err := s.configFiles(parseFlags(s.Args))
	if err != nil {
		return err
	}
	for _, file := range files {
		data, err := s.Read.bounded(file)
		if err != nil {
			return fmt.Errorf("read kubelet config: %w", err)
		}
		c, err := parseConfig(data)
		if err != nil {
			return fmt.Errorf("read kubelet config %s: %w", file, err)
		}
		visit(c)
	}
	return nil
}

// ListConfigDir lists what a kubelet reads of --config-dir: files named *.conf, in lexical order, at any depth.
func ListConfigDir(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Ext(path) == ".conf" {
			files = append(files, path)
		}
		return err
	})
	return files, err
}
