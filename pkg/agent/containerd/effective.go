package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// Effective is the configuration that a containerd runs with, as its `config dump` prints it: the file with those that it imports.
type Effective struct {
	Layout

	config   table // in version 2's form
	imported []Imported
}

// ErrUnknownVersion is for a containerd that writes a version of config files that this package does not know.
var ErrUnknownVersion = fmt.Errorf("containerd writes config files of a version after %d", maxVersion)

// ReadEffective asks binary what it makes of config, in the place of the file at path. run is as for Version. Nothing is written to a disk,
// and no daemon is asked.
func ReadEffective(ctx context.Context, binary, path string, config []byte, run func(ctx context.Context, name string, args ...string) (string, error)) (Effective, error) {
	imported, err := ReadImports(path, config)
	if err != nil {
		return Effective{}, err
	}
	dump, err := dump(ctx, binary, path, config, imported, run)
	if err != nil {
		return Effective{}, err
	}
	raw, err := readTOML(dump)
	if err != nil {
		return Effective{}, fmt.Errorf("%s config dump: %w", binary, err)
	}
	if version, ok := raw["version"].(int64); ok && version > maxVersion {
		return Effective{}, ErrUnknownVersion
	}
	e := Effective{imported: imported}
	if e.config, err = parse(dump); err != nil {
		return Effective{}, fmt.Errorf("%s config dump: %w", binary, err)
	}
	if e.Layout, err = ReadLayout(dump); err != nil {
		return Effective{}, fmt.Errorf("%s config dump: %w", binary, err)
	}
	said, err := ReadLayout(config, imported...)
	e.NamesSnapshotter = said.NamesSnapshotter // a dump has the default, too
	return e, err
}

// GuessEffective is for a binary that cannot be asked; Check finds nothing in it.
func GuessEffective(path string, config []byte) (Effective, error) {
	imported, err := ReadImports(path, config)
	if err != nil {
		return Effective{}, err
	}
	layout, err := ReadLayout(config, imported...)
	if err != nil {
		return Effective{}, fmt.Errorf("%s: %w", path, err)
	}
	return Effective{Layout: layout}, nil
}

// dump has binary read copies of the files from this process's memory, without their own imports: these are among imported.
func dump(ctx context.Context, binary, path string, config []byte, imported []Imported, run func(ctx context.Context, name string, args ...string) (string, error)) ([]byte, error) {
	original := map[string]string{}
	var imports []string
	for _, file := range append(slices.Clone(imported), Imported{path, config}) {
		content := table{}
		if err := unmarshal(file.Data, &content); err != nil {
			return nil, fmt.Errorf("%s: %w", file.Path, err)
		}
		delete(content, "imports")
		if file.Path == path && len(imports) > 0 {
			content["imports"] = imports
		}
		data, err := toml.Marshal(content)
		if err != nil {
			return nil, fmt.Errorf("copy %s: %w", file.Path, err)
		}
		opened, err := inMemory(data)
		if err != nil {
			return nil, fmt.Errorf("copy %s: %w", file.Path, err)
		}
		defer func() { _ = opened.Close() }()
		// Not /proc/self: it is the other program that opens it.
		at := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), opened.Fd())
		original[at] = file.Path
		imports = append(imports, at)
	}
	main := imports[len(imports)-1]
	out, err := run(ctx, binary, "--config", main, "config", "dump")
	if err != nil {
		text := err.Error()
		for at, path := range original {
			text = strings.ReplaceAll(text, at, path)
		}
		return nil, errors.New(text)
	}
	return []byte(out), nil
}

// inMemory returns a file that is in no directory.
func inMemory(data []byte) (*os.File, error) {
	var file *os.File
	fd, err := unix.MemfdCreate("containerd-config", unix.MFD_CLOEXEC)
	if err == nil {
		file = os.NewFile(uintptr(fd), "containerd-config") //nolint:gosec // no descriptor is negative
	} else { // before Linux 3.17
		if file, err = os.CreateTemp("", "containerd-config-"); err != nil {
			return nil, err
		}
		if err := os.Remove(file.Name()); err != nil {
			return nil, errors.Join(err, file.Close())
		}
	}
	if _, err := file.Write(data); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// Check finds what s wants and containerd would not run with, because a file that the config imports says otherwise, or is of another
// version: an ImportError names it.
func (e Effective) Check(s Settings) error {
	if e.config == nil {
		return nil
	}
	for _, id := range []string{criPlugin, criRuntimePlugin, criImagesPlugin} {
		disabled, err := stringList(e.config, "disabled_plugins")
		if err != nil {
			return err
		}
		if slices.Contains(disabled, id) {
			return e.conflict([]string{"disabled_plugins"}, "it disables the plugin "+id+", and with it CRI", func(value any) bool {
				ids, _ := stringList(table{"ids": value}, "ids")
				return slices.Contains(ids, id)
			})
		}
	}
	cri := []string{"plugins", criPlugin}
	registry, _ := at(e.config, append(cri, "registry")...).(table)
	if mirrors, _ := registry["mirrors"].(table); len(mirrors) > 0 {
		return e.conflict(append(cri, "registry", "mirrors"), "CRI does not load with registry.mirrors beside registry.config_path")
	}
	if path, _ := registry["config_path"].(string); path == "" || strings.Contains(withoutDocker(path), ":") {
		return e.conflict(append(cri, "registry", "config_path"), fmt.Sprintf("registry.config_path = %q is not one directory of hosts.toml files", path))
	}
	for _, w := range s.wanted() {
		if have := at(e.config, w.path...); have != w.value {
			return e.conflict(w.path, fmt.Sprintf("%s = %#v replaces %#v, which this node's pods need", strings.Join(w.path, "."), have, w.value))
		}
	}
	return e.checkHandlers(s)
}

type wanted struct {
	path  []string
	value any
}

// wanted are the settings that have to be as s says, whatever the files say.
func (s Settings) wanted() []wanted {
	var all []wanted
	text := func(value string, path ...string) {
		if value != "" {
			all = append(all, wanted{path, value})
		}
	}
	on := func(value bool, path ...string) {
		if value {
			all = append(all, wanted{path, value})
		}
	}
	text(s.Root, "root")
	text(s.Address, "grpc", "address")
	text(s.SandboxImage, "plugins", criPlugin, "sandbox_image")
	text(s.CNIConfDir, "plugins", criPlugin, "cni", "conf_dir")
	text(s.CNIBinDirs, "plugins", criPlugin, "cni", "bin_dir")
	text(s.Snapshotter, "plugins", criPlugin, "containerd", "snapshotter")
	text(s.DefaultRuntime, "plugins", criPlugin, "containerd", "default_runtime_name")
	on(s.RestrictOOMScoreAdj, "plugins", criPlugin, "restrict_oom_score_adj")
	on(s.EnableSELinux, "plugins", criPlugin, "enable_selinux")
	return all
}

func (e Effective) checkHandlers(s Settings) error {
	path := []string{"plugins", criPlugin, "containerd", "runtimes"}
	runtimes, _ := at(e.config, path...).(table)
	imported, err := Settings{Imported: e.imported, Release: version.Version{Major: 2}}.importedRuntimes()
	if err != nil {
		return err
	}
	for _, name := range sortedKeys(imported) {
		if runtimes[name] == nil {
			return e.conflict(append(path, name), "its handler "+name+" is ignored: files of other versions are imported with it")
		}
	}
	for _, name := range sortedKeys(runtimes) {
		if at(runtimes, name, "runtime_type") != runcV2 {
			continue
		}
		systemd, _ := at(runtimes, name, "options", "SystemdCgroup").(bool)
		if s.CgroupDriver != "" && systemd != (s.CgroupDriver == "systemd") {
			return e.conflict(append(path, name, "options", "SystemdCgroup"), fmt.Sprintf("SystemdCgroup = %t of the handler %s contradicts the kubelet's cgroup driver %s", systemd, name, s.CgroupDriver))
		}
		if spec, _ := at(runtimes, name, "base_runtime_spec").(string); s.BaseSpec != "" && spec == "" {
			return e.conflict(append(path, name, "base_runtime_spec"), fmt.Sprintf("the handler %s has no base_runtime_spec, which is to be %s", name, s.BaseSpec))
		}
	}
	return nil
}

// conflict blames the last imported file that has the setting, with a value like that.
func (e Effective) conflict(path []string, problem string, like ...func(value any) bool) error {
	if file, line, ok := lastWith(e.imported, path, like...); ok {
		return &ImportError{File: file.Path, Line: line, Problem: problem, Cure: "remove " + path[len(path)-1] + " from " + file.Path + ", or correct it there"}
	}
	return fmt.Errorf("containerd's effective configuration (containerd config dump): %s", problem)
}
