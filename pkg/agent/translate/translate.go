package translate

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Input is how Docker was set up.
type Input struct {
	// File is the path of daemon.json and Data its content, nil if there is none.
	File string
	Data []byte
	// Edited tells that the file was changed since dockerd started: that dockerd runs is then no proof that it takes the file.
	Edited bool
	// Accepted tells that dockerd itself has taken the file as it is now (docker.Validate).
	Accepted bool
	// Version is dockerd's, such as "20.10.24"; empty if it is not known.
	Version string
	// Args are the running dockerd's, the program first; systemd has put $DOCKER_OPTS and the like in already.
	Args []string
	// Environ is the running dockerd's, as NAME=VALUE: with what drop-ins and environment files set.
	Environ []string
}

// Settings are those that something on the host gets.
type Settings struct {
	// Mirrors are URLs for docker.io, in order. Insecure are hosts or host:port.
	Mirrors  []string `json:"mirrors,omitempty"`
	Insecure []string `json:"insecure,omitempty"`
	// InsecureNetworks (CIDR) have registries that are insecure, too. containerd takes only single ones.
	InsecureNetworks []string `json:"insecureNetworks,omitempty"`

	Proxy    Proxy     `json:"proxy,omitzero"`
	Runtimes []Runtime `json:"runtimes,omitempty"`
	// DefaultRuntime is empty for Docker's own default.
	DefaultRuntime string  `json:"defaultRuntime,omitempty"`
	Ulimits        []Limit `json:"ulimits,omitempty"`
	SELinux        bool    `json:"selinux,omitempty"`
	StorageDriver  string  `json:"storageDriver,omitempty"`
	MaxDownloads   int     `json:"maxDownloads,omitempty"`
	LogLevel       string  `json:"logLevel,omitempty"`
	// LogMaxSize is in bytes; 0 means that Docker did not rotate.
	LogMaxSize  int64 `json:"logMaxSize,omitempty"`
	LogMaxFiles int   `json:"logMaxFiles,omitempty"`
	// TempDir is where Docker writes temporary files; empty for the folder tmp of its data root.
	TempDir string `json:"tempDir,omitempty"`
}

// Proxy are values of the variables of these names.
type Proxy struct {
	HTTP  string `json:"http,omitempty"`
	HTTPS string `json:"https,omitempty"`
	No    string `json:"no,omitempty"`
}

// Runtime is an OCI runtime of Docker's beside its own runc.
type Runtime struct {
	Name string   `json:"name"`
	Path string   `json:"path,omitempty"`
	Args []string `json:"args,omitempty"`
	// Type is a containerd shim's, instead of Path; Options are that shim's.
	Type    string         `json:"type,omitempty"`
	Options map[string]any `json:"options,omitempty"`
	// Where is the place that sets it, for people: FILE:LINE:COLUMN, or a flag.
	Where string `json:"-"`
}

// Limit is a ulimit, by its name in ulimit(1)'s manner ("nofile"); -1 means none.
type Limit struct {
	Name       string `json:"name"`
	Soft, Hard int64
}

// Finding is the verdict on one setting.
type Finding struct {
	Key     string
	Verdict Verdict
	Text    string
}

// Docker reads all settings. An error is a place that dockerd would not take: it would not start again, and there would be
// no way back.
func Docker(in Input) (Settings, []Finding, error) {
	t := &translation{}
	set, err := t.readFile(in)
	if err != nil {
		return Settings{}, nil, err
	}
	flags, err := readFlags(in.Args)
	if err != nil {
		return Settings{}, nil, err
	}
	for _, flag := range flags {
		for _, s := range set {
			if s.Name == flag.Name && s.Name != "runtimes" && s.Name != "proxies" {
				return Settings{}, nil, s.fail("%s is also a flag of dockerd: it does not start with both", s.Name)
			}
		}
	}
	t.proxyFrom(in.Environ)
	for _, variable := range in.Environ {
		if dir, ok := strings.CutPrefix(variable, "DOCKER_TMPDIR="); ok {
			t.TempDir = dir
		}
	}
	for _, s := range append(set, flags...) {
		if err := t.take(s); err != nil {
			return Settings{}, nil, err
		}
	}
	if err := t.resolveDefaultRuntime(in, append(set, flags...)); err != nil {
		return Settings{}, nil, err
	}
	return t.Settings, t.findings, nil
}

type translation struct {
	Settings
	findings []Finding
}

func (t *translation) find(key string, verdict Verdict, text string) {
	finding := Finding{key, verdict, text}
	if !slices.Contains(t.findings, finding) {
		t.findings = append(t.findings, finding)
	}
}

// proxyFrom reads the variables as Go does: upper case first.
func (t *translation) proxyFrom(environ []string) {
	value := func(name string) string {
		for _, n := range []string{name, strings.ToLower(name)} {
			for _, e := range slices.Backward(environ) {
				if v, ok := strings.CutPrefix(e, n+"="); ok && v != "" {
					return v
				}
			}
		}
		return ""
	}
	t.Proxy = Proxy{value("HTTP_PROXY"), value("HTTPS_PROXY"), value("NO_PROXY")}
	if t.Proxy.HTTP+t.Proxy.HTTPS != "" {
		t.find("dockerd's environment", Carried, "its proxies go to a drop-in of containerd.service")
	}
}

// take adds one setting.
func (t *translation) take(s setting) error {
	verdict, why := s.Verdict, s.Becomes
	var err error
	switch s.Name {
	case "registry-mirrors":
		err = s.decode(&t.Mirrors)
	case "insecure-registries":
		err = t.takeInsecure(s)
	case "proxies":
		err = t.takeProxies(s)
	case "runtimes":
		err = t.takeRuntimes(s)
	case "default-runtime":
		err = s.decode(&t.DefaultRuntime)
	case "default-ulimits":
		err = t.takeUlimits(s)
	case "max-concurrent-downloads":
		err = s.decode(&t.MaxDownloads)
	case "storage-driver":
		err = s.decode(&t.StorageDriver)
	case "log-level":
		level := ""
		if err = s.decode(&level); t.LogLevel != "debug" {
			t.LogLevel = level
		}
	case "log-opts":
		err = t.takeLogOpts(s)
	default:
		if !s.depends {
			break
		}
		matters := false
		if matters, err = t.matters(s); !matters {
			verdict, why = Irrelevant, "the value is as good as none"
		}
	}
	t.find(s.Name, verdict, why)
	return err
}

// matters tells whether the value of a key whose verdict depends on it differs from what containerd does anyway.
func (t *translation) matters(s setting) (bool, error) {
	var value any
	if err := s.decode(&value); err != nil {
		return false, err
	}
	switch s.Name {
	case "debug":
		if value == true {
			t.LogLevel = "debug"
		}
		return value == true, nil
	case "selinux-enabled":
		t.SELinux = value == true
		return t.SELinux, nil
	case "init", "no-new-privileges":
		return value == true, nil
	case "log-driver":
		return value != "json-file" && value != "", nil
	case "seccomp-profile":
		return value != "builtin" && value != "", nil
	case "data-root", "graph":
		return value != "/var/lib/docker" && value != "", nil
	case "storage-opts":
		opts, _ := value.([]any)
		// The check for an old kernel is switched off, which says nothing about containers.
		opts = slices.DeleteFunc(opts, func(o any) bool { return strings.HasPrefix(fmt.Sprint(o), "overlay2.override_kernel_check=") })
		return len(opts) > 0, nil
	}
	return true, nil
}

func (t *translation) takeInsecure(s setting) error {
	var hosts []string
	if err := s.decode(&hosts); err != nil {
		return err
	}
	for _, host := range hosts {
		host = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(host), "http://"), "https://")
		host = strings.TrimSuffix(host, "/")
		if prefix, err := netip.ParsePrefix(host); err == nil {
			if !prefix.Addr().IsLoopback() { // containerd trusts localhost anyway
				t.InsecureNetworks = append(t.InsecureNetworks, prefix.Masked().String())
				t.find(s.Name, Warned, "containerd knows insecure registries by host alone, not the network "+host+
					": of the registries in it those are carried over that images on this node come from; name others in a hosts.toml each")
			}
			continue
		}
		if host == "" || strings.ContainsAny(host, "/\\ \"'\n\x00") || strings.HasPrefix(host, ".") {
			return s.fail("insecure registry %q is not a host", host)
		}
		t.Insecure = append(t.Insecure, host)
	}
	return nil
}

func (t *translation) takeProxies(s setting) error {
	proxies := map[string]string{}
	if err := s.decode(&proxies); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(proxies)) {
		value := proxies[name]
		to, ok := map[string]*string{"http-proxy": &t.Proxy.HTTP, "https-proxy": &t.Proxy.HTTPS, "no-proxy": &t.Proxy.No}[name]
		if !ok {
			t.find("proxies."+name, Warned, "unknown key")
		} else if value != "" {
			*to = value
		}
	}
	return nil
}

func (t *translation) takeRuntimes(s setting) error {
	var runtimes map[string]struct {
		Path        string         `json:"path"`
		RuntimeArgs []string       `json:"runtimeArgs"`
		RuntimeType string         `json:"runtimeType"`
		Options     map[string]any `json:"options"`
	}
	if err := s.decode(&runtimes); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(runtimes)) {
		r := runtimes[name]
		if name == "" || strings.ContainsAny(name, "/\\\n\x00") || strings.HasPrefix(name, ".") {
			return s.fail("runtime %q has no usable name", name)
		}
		if name == "runc" {
			return s.fail("the name runc is Docker's own")
		}
		if r.Path == "" && r.RuntimeType == "" && s.before23 {
			t.find(s.Name, Warned, "runtime "+name+" has neither path nor runtimeType, and runs nothing")
			continue
		}
		if r.Path == "" && r.RuntimeType == "" {
			return s.fail("runtime %s has neither path nor runtimeType", name)
		}
		t.Runtimes = append(t.Runtimes, Runtime{Name: name, Path: r.Path, Args: r.RuntimeArgs, Type: r.RuntimeType, Options: r.Options, Where: s.where})
	}
	return nil
}

// stockRuntimes are dockerd's own names of the runc that it comes with.
var stockRuntimes = []string{"", "runc", "io.containerd.runc.v2", "io.containerd.runtime.v1.linux"}

// resolveDefaultRuntime finds what the default runtime is. One that is not among runtimes is a shim, whose program containerd finds by its
// name (moby daemon/runtime_unix.go, isPermissibleC8dRuntimeName).
func (t *translation) resolveDefaultRuntime(in Input, set []setting) error {
	name := t.DefaultRuntime
	i := slices.IndexFunc(set, func(s setting) bool { return s.Name == "default-runtime" })
	if i < 0 || slices.Contains(stockRuntimes, name) || slices.ContainsFunc(t.Runtimes, func(r Runtime) bool { return r.Name == name }) {
		return nil
	}
	prefix, _, dotted := strings.Cut(name, ".")
	if in.before23() || strings.Contains(name, "/") || !dotted || prefix == "" {
		return set[i].fail("the default runtime %q is not among runtimes", name)
	}
	t.Runtimes = append(t.Runtimes, Runtime{Name: name, Type: name, Where: set[i].where})
	return nil
}

// rlimits are the names that Docker knows (github.com/docker/go-units, ulimit.go) and OCI's RLIMIT_… take.
var rlimits = []string{
	"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
}

func (t *translation) takeUlimits(s setting) error {
	var limits map[string]struct{ Soft, Hard int64 }
	if err := s.decode(&limits); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		limit := Limit{name, limits[name].Soft, limits[name].Hard}
		if limit.Hard != -1 && (limit.Soft > limit.Hard || limit.Soft == -1) {
			return s.fail("ulimit %s: the soft limit is above the hard one", name)
		}
		if !slices.Contains(rlimits, name) {
			return s.fail("there is no ulimit %q", name)
		}
		t.Ulimits = append(t.Ulimits, limit)
	}
	return nil
}

func (t *translation) takeLogOpts(s setting) error {
	opts := map[string]string{}
	if err := s.decode(&opts); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(opts)) {
		value := opts[name]
		switch name {
		case "max-size":
			bytes, err := parseSize(value)
			if err != nil {
				return s.fail("log option max-size: %v", err)
			}
			t.LogMaxSize = bytes
		case "max-file":
			files, err := strconv.Atoi(value)
			if err != nil || files < 1 {
				return s.fail("log option max-file: %q is not a number of files", value)
			}
			t.LogMaxFiles = max(files, 2)
			if files == 1 {
				t.find(s.Name, Warned, "max-file is 1, and the kubelet keeps at least 2 files of each container")
			}
		case "mode", "max-buffer-size", "compress":
			// How dockerd writes; the kubelet compresses what it rotated.
		default:
			t.find(s.Name, Warned, "log option "+name+" is lost: CRI's log format has no place for it")
		}
	}
	return nil
}

// parseSize reads as go-units FromHumanSize does: decimal units, "10m" being 10,000,000 bytes. -1 means no limit.
func parseSize(value string) (int64, error) {
	bad := fmt.Errorf("%q is not a size", value)
	if value == "-1" {
		return 0, nil
	}
	lower := strings.ToLower(strings.TrimSpace(value))
	lower = strings.TrimSuffix(strings.TrimSuffix(lower, "b"), "i")
	factor := 1.0
	if n := len(lower); n > 0 {
		if i := strings.IndexByte("kmgtp", lower[n-1]); i >= 0 {
			factor, lower = math.Pow(1000, float64(i+1)), strings.TrimSpace(lower[:n-1])
		}
	}
	number, err := strconv.ParseFloat(lower, 64)
	if err != nil || number < 0 || number*factor > math.MaxInt64/2 || number != number {
		return 0, bad
	}
	return int64(number * factor), nil
}
