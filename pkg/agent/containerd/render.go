package containerd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// Settings are what the agent wants of containerd. Empty fields keep what the existing file says.
type Settings struct {
	// CgroupDriver is the kubelet's: "systemd" or "cgroupfs". It is written to every runc handler, since containerd 2.x
	// reports the default handler's to the kubelet, which from 1.31 on follows it.
	CgroupDriver string
	// SandboxImage is the pause image, which has to be on the node already.
	SandboxImage string
	// SandboxAuth is base64 of USER:PASSWORD for the sandbox image's registry: containerd pulls that image itself, without what the
	// kubelet knows. A file with it should be for root's eyes alone.
	SandboxAuth string
	// CNIBinDirs is the one directory of CNI plugins; before containerd 2.1 there is no list.
	CNIBinDirs string
	// CNIConfDir is the directory of CNI configurations.
	CNIConfDir string
	// Address is the path of the socket, if it is to be another one than the file's.
	Address string
	// Root is containerd's data directory.
	Root string
	// Snapshotter unpacks images, e.g. "overlayfs".
	Snapshotter string
	// RestrictOOMScoreAdj lets containerd run pods where it lacks CAP_SYS_RESOURCE. It is only ever turned on.
	RestrictOOMScoreAdj bool
	// Runtimes are handlers to be added; one that the file has already stays as it is there.
	Runtimes []Runtime
	// BaseSpec is the path of a file that containers' OCI specs begin with, for each runc handler that has none; see the function.
	BaseSpec string
	// DefaultRuntime is the handler of pods that name none.
	DefaultRuntime string
	// EnableSELinux is only ever turned on.
	EnableSELinux bool
	// UnprivilegedNetwork lets containers without privileges listen on ports below 1024 and send ICMP echos, as Docker does from 20.10
	// on and containerd by default from 2.0 on. It is only ever turned on, and needs Linux 4.11.
	UnprivilegedNetwork bool
	// MaxConcurrentDownloads counts layers; the file's own number stays, unless it is containerd's default.
	MaxConcurrentDownloads int
	// LogLevel is the daemon's, if the file says none.
	LogLevel string
	// Release is the containerd that the file is for. Without one it is of version 2, which containerd 1.3 to 2.4 take.
	Release version.Version
	// Imported are the files that the existing file's `imports` names (ReadImports). For containerd before 2.0, where an imported file
	// that has a CRI table replaces the whole one of the main file, they are merged into the one file and `imports` goes. For later
	// ones `imports` stays, and what the handlers that they define lack is added to them in the main file.
	Imported []Imported
}

// merges tells that imported files become part of the main one.
func (s Settings) merges() bool { return len(s.Imported) > 0 && !s.Release.AtLeast(2, 0) }

// Runtime is a handler: a program in runc's place, or with Type another shim with its Options.
type Runtime struct {
	Name, Binary, Type string
	Options            map[string]any
}

// defaultDownloads is what containerd does without max_concurrent_downloads.
const defaultDownloads = 3

// CannotKeepError names a setting of the existing file that the new one cannot hold. The switch has to be refused: dropping it
// would change how the node runs.
type CannotKeepError struct {
	// Key is the TOML key; Reason says why.
	Key, Reason string
}

func (e *CannotKeepError) Error() string {
	return "containerd config: cannot keep " + e.Key + ": " + e.Reason
}

const header = `# Written by kubectl-runtime when it moved this node from Docker Engine to containerd. Settings of the file that was here
# before are kept, and so are its comments.
`

// Render returns the config.toml for s.Release, in the version that it writes itself (formatFor): CRI enabled and set up as s says, and
// all that the existing file (any version, empty if there is none) says beside that. It is pure, and rendering its own output again
// changes nothing. What cannot be kept is a CannotKeepError, a file that cannot be imported an ImportError.
func Render(existing []byte, s Settings) ([]byte, error) {
	if s.CgroupDriver != "" && s.CgroupDriver != "systemd" && s.CgroupDriver != "cgroupfs" {
		return nil, fmt.Errorf("containerd config: unknown cgroup driver %q", s.CgroupDriver)
	}
	to, err := formatFor(s.Release, s.Imported)
	if err != nil {
		return nil, err
	}
	config, err := s.parse(existing)
	if err != nil {
		return nil, err
	}
	if s.Root != "" {
		config["root"] = s.Root
	}
	if err := setAddress(config, s.Address); err != nil {
		return nil, err
	}
	if s.LogLevel != "" {
		debug, err := subtable(config, "debug")
		if err != nil {
			return nil, err
		}
		if level, _ := debug["level"].(string); level == "" {
			debug["level"] = s.LogLevel
		}
	}
	if err := enableCRI(config); err != nil {
		return nil, err
	}
	plugins, err := subtable(config, "plugins")
	if err != nil {
		return nil, err
	}
	cri, err := subtable(plugins, criPlugin)
	if err != nil {
		return nil, err
	}
	for _, apply := range []func(table, Settings) error{setCRI, setCNI, setRegistry, setContainerd} {
		if err := apply(cri, s); err != nil {
			return nil, err
		}
	}
	if config, err = to.to(config); err != nil {
		return nil, err
	}
	body, err := toml.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("write containerd config: %w", err)
	}
	return append([]byte(header), keepComments(existing, body, to)...), nil
}

// parse reads the existing file, with those that become part of it.
func (s Settings) parse(existing []byte) (table, error) {
	if !s.merges() {
		return parse(existing)
	}
	config, err := parseAll(existing, s.Imported)
	if err != nil {
		return nil, err
	}
	delete(config, "imports")
	return config, nil
}

// setAddress leaves the file alone where it says, or means, the same.
func setAddress(config table, address string) error {
	grpc, err := subtable(config, "grpc")
	if err != nil {
		return err
	}
	if is, _ := grpc["address"].(string); address != "" && address != is && (is != "" || address != DefaultAddress) {
		grpc["address"] = address
	}
	if len(grpc) == 0 {
		delete(config, "grpc")
	}
	return nil
}

// enableCRI takes CRI off the list of disabled plugins; Docker's package puts it there, in the form of version 1.
func enableCRI(config table) error {
	disabled, err := stringList(config, "disabled_plugins")
	if err != nil {
		return err
	}
	disabled = slices.DeleteFunc(disabled, func(id string) bool {
		switch id {
		case "cri", criPlugin, criRuntimePlugin, criImagesPlugin:
			return true
		}
		return false
	})
	if len(disabled) == 0 {
		delete(config, "disabled_plugins")
	} else {
		config["disabled_plugins"] = disabled
	}
	return nil
}

func setCRI(cri table, s Settings) error {
	if s.SandboxImage != "" {
		cri["sandbox_image"] = s.SandboxImage
	}
	if s.RestrictOOMScoreAdj {
		cri["restrict_oom_score_adj"] = true
	}
	if s.EnableSELinux {
		cri["enable_selinux"] = true
	}
	if s.UnprivilegedNetwork {
		cri["enable_unprivileged_ports"], cri["enable_unprivileged_icmp"] = true, true
	}
	if have, ok := cri["max_concurrent_downloads"].(int64); s.MaxConcurrentDownloads > 0 && (!ok || have == defaultDownloads) {
		cri["max_concurrent_downloads"] = int64(s.MaxConcurrentDownloads)
	}
	// It only ever worked for the runtime that containerd 2.0 dropped, and CRI does not load with any other.
	delete(cri, "systemd_cgroup")
	return nil
}

func setCNI(cri table, s Settings) error {
	cni, err := subtable(cri, "cni")
	if err != nil {
		return err
	}
	if s.CNIConfDir != "" {
		cni["conf_dir"] = s.CNIConfDir
	}
	if s.CNIBinDirs != "" {
		cni["bin_dir"] = s.CNIBinDirs
		delete(cni, "bin_dirs")
	}
	if _, ok := cni["bin_dirs"]; ok {
		return &CannotKeepError{Key: "cni.bin_dirs", Reason: "a version 2 file takes one directory"}
	}
	if len(cni) == 0 {
		delete(cri, "cni")
	}
	return nil
}

// setRegistry points at hosts.toml files. InlineHosts says in such files what the older inline settings say that it takes out.
func setRegistry(cri table, s Settings) error {
	registry, err := subtable(cri, "registry")
	if err != nil {
		return err
	}
	if path, _ := registry["config_path"].(string); path != "" {
		path = withoutDocker(path)
		registry["config_path"] = path
		if strings.Contains(path, ":") {
			return &CannotKeepError{Key: "registry.config_path", Reason: "containerd 2.x does not read hosts.toml files from a list of directories"}
		}
		return setSandboxAuth(registry, s)
	}
	if _, err := inlineHosts(registry); err != nil {
		return err
	}
	delete(registry, "mirrors")
	configs, err := subtable(registry, "configs")
	if err != nil {
		return err
	}
	for _, host := range sortedKeys(configs) {
		config, err := subtable(configs, host)
		if err != nil {
			return err
		}
		if delete(config, "tls"); len(config) == 0 {
			delete(configs, host)
		}
	}
	if len(configs) == 0 {
		delete(registry, "configs")
	}
	registry["config_path"] = RegistryConfigPath
	return setSandboxAuth(registry, s)
}

// setSandboxAuth may stand beside config_path, which has no such setting; credentials that the file has for the registry stay.
func setSandboxAuth(registry table, s Settings) error {
	host, _, ok := strings.Cut(s.SandboxImage, "/")
	if !ok || s.SandboxAuth == "" {
		return nil
	}
	configs, err := subtable(registry, "configs")
	if err != nil {
		return err
	}
	config, err := subtable(configs, host)
	if err != nil {
		return err
	}
	if config["auth"] == nil {
		config["auth"] = table{"auth": s.SandboxAuth}
	}
	return nil
}

// withoutDocker takes Docker's own directory off the end of a list, as containerd 2.2 has it by default: what lies there is copied.
func withoutDocker(path string) string {
	return strings.TrimSuffix(path, ":/etc/docker/certs.d")
}

func setContainerd(cri table, s Settings) error {
	containerd, err := subtable(cri, "containerd")
	if err != nil {
		return err
	}
	if s.Snapshotter != "" {
		containerd["snapshotter"] = s.Snapshotter
	}
	runtimes, err := subtable(containerd, "runtimes")
	if err != nil {
		return err
	}
	if err := renameOldRuntimes(containerd, runtimes); err != nil {
		return err
	}
	imported, err := s.importedRuntimes()
	if err != nil {
		return err
	}
	addRuntimes(runtimes, imported, s.Runtimes)
	if s.DefaultRuntime != "" {
		containerd["default_runtime_name"] = s.DefaultRuntime
	}
	if name, _ := containerd["default_runtime_name"].(string); name == "" {
		containerd["default_runtime_name"] = "runc"
	}
	// Up to 1.7 a file that defines any handler has only those it defines.
	if _, err := subtable(runtimes, "runc"); err != nil {
		return err
	}
	for _, name := range sortedKeys(runtimes) {
		runtime, err := subtable(runtimes, name)
		if err != nil {
			return err
		}
		if err := setRuntime(runtime, s); err != nil {
			return fmt.Errorf("runtime %s: %w", name, err)
		}
	}
	name := containerd["default_runtime_name"].(string)
	if runtimes[name] == nil && imported[name] == nil {
		return &CannotKeepError{Key: "containerd.default_runtime_name", Reason: fmt.Sprintf("there is no runtime %q", name)}
	}
	return nil
}

// importedRuntimes are the handlers of the files that containerd goes on importing.
func (s Settings) importedRuntimes() (table, error) {
	if s.merges() {
		return nil, nil
	}
	config, err := parseAll(nil, s.Imported)
	if err != nil {
		return nil, err
	}
	runtimes, _ := at(config, "plugins", criPlugin, "containerd", "runtimes").(table)
	return runtimes, nil
}

// addRuntimes adds handlers that neither the file nor one that it imports defines. Those that run runc and are imported get an entry, too,
// which containerd merges with theirs: they are set up there.
func addRuntimes(runtimes, imported table, add []Runtime) {
	for _, name := range sortedKeys(imported) {
		kind := at(imported, name, "runtime_type")
		if _, ok := runtimes[name]; !ok && (kind == nil || kind == "" || kind == runcV2) {
			runtimes[name] = table{"runtime_type": runcV2}
		}
	}
	for _, r := range add {
		if runtimes[r.Name] != nil || imported[r.Name] != nil {
			continue
		}
		runtime := table{"runtime_type": runcV2}
		if r.Type != "" {
			runtime["runtime_type"] = r.Type
		}
		options := table{}
		for key, value := range r.Options {
			options[key] = value
		}
		if r.Binary != "" {
			options["BinaryName"] = r.Binary
		}
		if len(options) > 0 {
			runtime["options"] = options
		}
		runtimes[r.Name] = runtime
	}
}

// renameOldRuntimes does to the two tables that containerd 2.0 dropped what 1.x did with them (pkg/cri/config,
// ValidatePluginConfig). Empty ones come from `containerd config default`.
func renameOldRuntimes(containerd, runtimes table) error {
	for _, old := range []struct{ key, name string }{{"default_runtime", "default"}, {"untrusted_workload_runtime", "untrusted"}} {
		runtime, err := subtable(containerd, old.key)
		if err != nil {
			return err
		}
		delete(containerd, old.key)
		if kind, _ := runtime["runtime_type"].(string); kind == "" {
			continue
		}
		if _, ok := runtimes[old.name]; ok && old.name == "untrusted" {
			return &CannotKeepError{Key: "containerd." + old.key, Reason: "there is a runtime of that name, too"}
		}
		runtimes[old.name] = runtime
		if old.name == "default" {
			containerd["default_runtime_name"] = "default"
		}
	}
	return nil
}

const runcV2 = "io.containerd.runc.v2"

// setRuntime sets the cgroup driver of a handler that runs runc or a program like it, and replaces the shims that containerd
// 2.0 dropped.
func setRuntime(runtime table, s Settings) error {
	switch kind, _ := runtime["runtime_type"].(string); kind {
	case "", "io.containerd.runc.v1":
		runtime["runtime_type"] = runcV2
	case "io.containerd.runtime.v1.linux":
		runtime["runtime_type"] = runcV2
		if err := moveV1Options(runtime); err != nil {
			return err
		}
	case runcV2:
	default:
		return nil // gVisor, Kata and others choose on their own
	}
	// Gone in 2.0, and empty in what `containerd config default` of 1.x prints.
	for _, key := range []string{"runtime_engine", "runtime_root"} {
		if value, _ := runtime[key].(string); value == "" {
			delete(runtime, key)
		}
	}
	if have, _ := runtime["base_runtime_spec"].(string); s.BaseSpec != "" && have == "" {
		runtime["base_runtime_spec"] = s.BaseSpec
	}
	if s.CgroupDriver == "" {
		return nil
	}
	options, err := subtable(runtime, "options")
	if err != nil {
		return err
	}
	options["SystemdCgroup"] = s.CgroupDriver == "systemd"
	return nil
}

// moveV1Options turns the settings of the runtime v1 shim into runc.v2's options.
func moveV1Options(runtime table) error {
	options, err := subtable(runtime, "options")
	if err != nil {
		return err
	}
	for _, pair := range []struct{ old, now string }{{"runtime_engine", "BinaryName"}, {"runtime_root", "Root"}} {
		value, ok := runtime[pair.old]
		delete(runtime, pair.old)
		if text, isText := value.(string); ok && !isText {
			return &CannotKeepError{Key: pair.old, Reason: "it is not a string"}
		} else if text != "" {
			options[pair.now] = text
		}
	}
	return nil
}
